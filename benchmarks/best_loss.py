"""Claim 3, the best loss in a fixed time, cold start and everything included.

python benchmarks/best_loss.py tinyshakespeare.txt --minutes 30 --nanogpt PATH

Tiny Shakespeare by characters, the last tenth held out; the loss is that of the model at the end,
not of the best of its checkpoints, over the whole validation set. nanoGPT trains what its README
trains on a CPU, for as many steps as fit into the same time, with the learning rate that is best
for it here; --nanogpt-steps says how many that are on this machine.
"""

from __future__ import annotations

import statistics

import comparison


def main() -> None:
    """Reads the arguments, runs the sides in turn, prints the losses."""
    parser = comparison.arguments(__doc__, rounds=5)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--nanogpt-steps", type=int, default=40_000)
    options = parser.parse_args()
    sides = {"MyLLM": comparison.myllm_run(options.text, ["--minutes", str(options.minutes)])}
    if options.nanogpt:
        steps = options.nanogpt_steps
        flags = [
            *comparison.NANOGPT_CPU, "--learning_rate=2e-3", "--dropout=0.1",
            f"--max_iters={steps}", f"--lr_decay_iters={steps}",
            f"--eval_interval={steps}", "--log_interval=1000",
        ]  # fmt: skip
        sides["nanoGPT, at its best"] = comparison.nanogpt_run(
            options.nanogpt, options.text, flags
        )
    results = comparison.alternate(sides, options.rounds)
    rows = [
        (
            name,
            comparison.spread([r.seconds / 60 for r in found]),
            comparison.spread([r.loss for r in found], 4),
            f"{statistics.stdev(r.loss for r in found):.4f}" if len(found) > 1 else "",
        )
        for name, found in results.items()
    ]
    title = f"best loss within {options.minutes:g} minutes"
    comparison.report(title, ("", "minutes", "loss", "standard deviation"), rows)
    comparison.write_json(options.json, results)


if __name__ == "__main__":
    main()
