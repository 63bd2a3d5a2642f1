"""Claim 2, time to a loss: wall time from a cold start, everything included.

python benchmarks/time_to_loss.py tinyshakespeare.txt --nanogpt PATH          # to 1.92
python benchmarks/time_to_loss.py tinyshakespeare.txt --goal large            # to 1.4697
python benchmarks/time_to_loss.py tinyshakespeare.txt --goal gpu --nanogpt PATH   # to 1.47

Tiny Shakespeare by characters, the last tenth held out; the loss is that of the model at the end
of its run, over the whole validation set. Our time is that of the whole command: importing,
preparing the text, learning the vocabulary, compiling, training, evaluating, saving. nanoGPT's
is that of its train.py without importing PyTorch and without preparing the text.

"As shipped" is the command of nanoGPT's README, for a CPU or for a GPU; "at its best" the best
that its own flags gave on a CPU here. Its large recipe takes a day on a CPU, so `large` runs ours
alone.
"""

from __future__ import annotations

import statistics

from comparison import (
    NANOGPT_CPU,
    alternate,
    arguments,
    myllm_run,
    nanogpt_run,
    report,
    spread,
    write_json,
)

GOALS = {"small": 1.92, "large": 1.4697, "gpu": 1.47}
# what `--minutes 0.2` and `--minutes 8` chose here, so that all rounds train the same
OURS = {
    "small": (
        "--d-model 64 --n-layers 3 --n-heads 2 --context-length 64 --batch-size 32 "
        "--learning-rate 0.012 --max-steps 195 --warmup-steps 9 --eval-interval 195"
    ).split(),
    "large": (
        "--d-model 192 --n-layers 6 --n-heads 3 --context-length 256 --batch-size 16 "
        "--learning-rate 0.004 --max-steps 720 --warmup-steps 36 --eval-interval 720"
    ).split(),
    "gpu": ["--minutes", "0.6", "--device", "cuda"],
}
AT_ITS_BEST = [
    *NANOGPT_CPU, "--batch_size=16", "--learning_rate=5e-3", "--max_iters=850",
    "--lr_decay_iters=850", "--min_lr=0.0", "--eval_interval=850", "--log_interval=100",
]  # fmt: skip


def main() -> None:
    """Reads the arguments, runs the sides in turn, prints the ratio."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--goal", choices=GOALS, default="small")
    options = parser.parse_args()
    goal = GOALS[options.goal]
    sides = {"MyLLM": myllm_run(options.text, OURS[options.goal])}
    if options.nanogpt and options.goal != "large":
        shipped = {"small": NANOGPT_CPU, "gpu": []}[options.goal]
        sides["nanoGPT, as shipped"] = nanogpt_run(options.nanogpt, options.text, shipped)
    if options.nanogpt and options.goal == "small":
        sides["nanoGPT, at its best"] = nanogpt_run(options.nanogpt, options.text, AT_ITS_BEST)
    results = alternate(sides, options.rounds)
    ours = statistics.median(result.seconds for result in results["MyLLM"])
    rows = [
        (
            name,
            spread([r.seconds for r in found]),
            spread([r.loss for r in found], 4),
            f"{sum(r.loss <= goal for r in found)} of {len(found)}",
            f"{statistics.median(r.seconds for r in found) / ours:.2f}",
        )
        for name, found in results.items()
    ]
    report(f"time to {goal}", ("", "seconds", "loss", "reached it", "ours is sooner by"), rows)
    write_json(options.json, results)


if __name__ == "__main__":
    main()
