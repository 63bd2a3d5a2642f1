"""What the losses of a run say of it: always told when it is true, never when it is not."""

import math
import random

import pytest

from myllm.config import RunConfig, with_values
from myllm.runs.verdict import Facts, Point, best_of, points_of, verdict, warning
from myllm.train.early_stop import with_patience
from myllm.train.eta import TimeLeft

FACTS = Facts(
    n_train_tokens=20_000, n_val_tokens=2_000, tokens_per_step=2_000, max_steps=600,
    unigram_loss=6.0,
)  # fmt: skip
SEEDS = range(200)


def curve(losses, trains=None, interval=60):
    trains = trains or [loss - 0.3 * i for i, loss in enumerate(losses, 1)]
    rows = zip(trains, losses)
    return [Point(interval * i, train, val) for i, (train, val) in enumerate(rows, 1)]


def healthy(seed, n=10, noise=0.01):
    """Falling as a power of the steps, with noise."""
    rng = random.Random(seed)
    floor, height, power = rng.uniform(2, 4), rng.uniform(1, 3), rng.uniform(0.4, 1.2)
    losses = [floor + height * (10 * i / n) ** -power for i in range(1, n + 1)]
    trains = [loss - 0.05 * i for i, loss in enumerate(losses)]
    return curve([loss * (1 + rng.gauss(0, noise)) for loss in losses], trains, 600 // n)


def overfitted(seed, n=10, noise=0.005):
    """Falling, and from somewhere on rising by some percent an evaluation."""
    rng = random.Random(seed)
    turn, rise = rng.randint(0, n // 2), rng.uniform(0.03, 0.2)
    losses = [3 + 2 / (min(i, turn) + 1) for i in range(n)]
    losses = [loss * (1 + rise * max(0, i - turn)) for i, loss in enumerate(losses)]
    trains = [5 * 0.7**i for i in range(n)]
    return curve([loss * (1 + rng.gauss(0, noise)) for loss in losses], trains, 600 // n)


def warned(points, facts=FACTS):
    """The steps at which a run that grows evaluation by evaluation would be warned."""
    parts = [points[:i] for i in range(1, len(points) + 1)]
    return [part[-1].step for part in parts if warning(part, facts)]


# measured: 40 kB of English, 370 thousand parameters, seen 28 times
HEART = [3.7097, 3.0440, 2.9125, 3.0518, 3.2524, 3.4613, 3.5834, 3.6619, 3.7009, 3.7124]
HEART_TRAIN = [3.7334, 2.4350, 1.7380, 1.2715, 0.9403, 0.7028, 0.5097, 0.3658, 0.3031, 0.2377]
# measured: 35 kB of Chinese, 1.3 million parameters, seen 13 times
SLIGHT = [5.1413, 4.0154, 3.4492, 3.1158, 2.9948, 2.9575, 3.0086, 3.0169, 3.0724]
SLIGHT_TRAIN = [5.6905, 4.5382, 3.4197, 2.7431, 2.1260, 1.6608, 1.1788, 0.8626, 0.5509]
# measured: 40 kB of English, 25 thousand parameters, seen 34 times
SMALL = [4.4853, 3.8750, 3.5605, 3.3999, 3.3199, 3.2386, 3.1873, 3.1754, 3.1724, 3.1552]


class TestVerdict:
    @pytest.mark.parametrize("n", [5, 10, 20, 40])
    @pytest.mark.parametrize("noise", [0.0, 0.005, 0.01])
    def test_no_false_alarm(self, n, noise):
        """In 200 healthy runs, however noisy: not during the run, not at its end."""
        for seed in SEEDS:
            points = healthy(seed, n, noise)
            assert not warned(points), (seed, points)
            assert verdict(points, FACTS).kind in ("still improving", "levelled off")

    def test_no_alarm_where_it_levels_off(self):
        """The best of losses that differ by chance alone is some other evaluation each time."""
        for seed in SEEDS:
            rng = random.Random(seed)
            losses = [3 * (1 + rng.gauss(0, 0.004)) for _ in range(20)]
            points = curve(losses, [3 - 0.05 * i for i in range(20)], interval=30)
            assert not warned(points), (seed, points)
            assert verdict(points, FACTS).kind in ("still improving", "levelled off")

    @pytest.mark.parametrize("n", [5, 10, 20])
    def test_overfitting_is_always_told(self, n):
        for seed in SEEDS:
            points = overfitted(seed, 2 * n)
            assert warned(points), (seed, points)
            found = verdict(points, FACTS)
            assert found.kind == "overfitted" and found.more_steps is None
            best = best_of(points)
            assert best is not None and f"step {best.step} of 600" in found.sentence

    def test_of_measured_runs(self):
        heart, small = curve(HEART, HEART_TRAIN), curve(SMALL)
        assert warned(heart)[0] <= 420 and verdict(heart, FACTS).kind == "overfitted"
        assert "generate uses the checkpoint of step 180" in verdict(heart, FACTS).sentence
        assert verdict(curve(SLIGHT, SLIGHT_TRAIN), FACTS).kind == "overfitted"
        assert not warned(small) and verdict(small, FACTS).kind != "overfitted"

    def test_one_worse_evaluation_is_not_overfitting(self):
        for place in range(1, 9):
            losses = [5 - 0.2 * i for i in range(10)]
            losses[place] *= 1.3
            assert not warned(curve(losses))

    def test_text_that_was_not_seen_twice_is_not_learned_by_heart(self):
        long = Facts(10**9, 250_000, 2_000, 600, 6.0)
        assert not warned(curve(HEART, HEART_TRAIN), long)

    def test_a_run_that_continues(self):
        """Another learning rate may throw it back: then the loss on the training text rises, too.
        Records of other events are none of an evaluation."""
        losses, trains = [4.0, 3.5, 3.2, 3.6, 3.5, 3.4], [4.0, 3.4, 3.0, 3.5, 3.3, 3.2]
        assert not warned(curve(losses, trains))
        records = [point._asdict() for point in curve(HEART, HEART_TRAIN)]
        records.insert(4, {"step": 250, "event": "rollback", "failed_step": 270})
        assert verdict(points_of(records), FACTS) == verdict(curve(HEART, HEART_TRAIN), FACTS)

    @pytest.mark.parametrize(
        "losses, trains, kind",
        [
            ([], None, "unmeasured"),
            ([math.nan], None, "not finite"),
            ([4.0, math.nan], None, "not finite"),
            ([4.0, math.inf, 3.0], None, "still improving"),
            ([4.0], None, "too few evaluations"),
            ([5.99, 5.98, 5.97], None, "learned nothing"),
            ([6.5], None, "learned nothing"),
            ([4.0, 3.0, 3.5, 4.5, 5.0], [4.0, 3.0, 3.6, 4.4, 5.0], "diverged"),
            ([4.0, 3.5, 3.2, 3.0, 2.9], None, "still improving"),
            ([4.0, 3.0, 3.01, 2.99, 3.0, 3.0, 2.99, 3.0], None, "levelled off"),
            ([3.0, 4.0], [3.0, 2.0], "overfitted"),
        ],
    )
    def test_kinds(self, losses, trains, kind):
        found = verdict(curve(losses, trains), FACTS)
        assert found.kind == kind and found.sentence and "\n" not in found.sentence

    def test_a_run_that_cannot_be_judged(self):
        """Too few tokens to measure on; unless it is plain all the same."""
        few = Facts(300, 30, 2_000, 600, 6.0)
        assert verdict(curve([4.0, 3.9, 3.8]), few).kind == "too little text"
        assert verdict(curve([4.0, 5.0, 6.0], [4.0, 3.0, 2.0]), few).kind == "overfitted"

    @pytest.mark.parametrize(
        "n, seen",
        [(10**6, "36% of"), (10**5, "3.6 times through"), (300, "1,200 times through")],
    )
    def test_how_much_was_seen(self, n, seen):
        facts = Facts(n, 10**5, 2_000, 300, 6.0)
        assert f"after {seen} the text" in verdict(curve([4.0, 3.5, 3.0]), facts).sentence

    def test_a_larger_model_is_not_advised_where_there_is_too_little_text(self):
        """There the loss on the training text has left the other one behind."""
        losses = [4.0, 3.0, 3.01, 2.99, 3.0, 3.0, 2.99, 3.0]
        for trains, advice in ((losses, "or a larger model"), ([0.7 * x for x in losses], "text")):
            found = verdict(curve(losses, trains), FACTS)
            assert found.kind == "levelled off" and f"{advice} might help" in found.sentence

    def test_what_more_steps_would_help_is_named(self):
        assert verdict(curve([4.0, 3.5, 3.2, 3.0, 2.9]), FACTS).more_steps == 1200
        short = Facts(10**6, 10**5, 100, 4, 6.0)
        assert verdict(curve([6.0, 5.99], interval=2), short).more_steps == 200


class TestPatience:
    def patience(self, n_train_tokens, **values):
        config = with_values(RunConfig(), {"context_length": 128, "max_steps": 600, **values})
        return with_patience(config, n_train_tokens).train.patience

    def test_of_a_short_text(self):
        """That a run sees more than eight times: three tenths of its evaluations."""
        assert self.patience(100_000) == 3 and self.patience(200_000) is None
        assert self.patience(100_000, eval_interval=20) == 9
        assert self.patience(100_000, eval_interval=300) == 3

    @pytest.mark.parametrize("named", [0, 1, 7])
    def test_what_was_named_stays(self, named):
        assert self.patience(1_000, patience=named) == named


class TestTimeLeft:
    def test_a_slow_step_says_nothing_of_the_others(self):
        """Nor does the first one, which warms up."""
        left, now = TimeLeft(0, 1000, 1000, 0.0), 0.0
        found = []
        for step in range(1, 200):
            now += 30.0 if step == 1 else 5.0 if step % 20 == 0 else 1.0
            left.step_ended(step, now)
            found.append((left.seconds(), 1000 - step))
        for seconds, steps in found[20:]:
            assert seconds is not None and steps <= seconds <= 1.3 * steps

    def test_evaluations_count(self):
        """By a guess before the first, as they were measured after it; and the one at the end."""
        left = TimeLeft(0, 25, 10, 0.0, in_steps=4)
        left.step_ended(1, 1.0)
        left.step_ended(2, 2.0)
        assert left.seconds() == 23 + 3 * 4
        for step in range(3, 11):
            left.step_ended(step, float(step))
        left.evaluation_ended(30.0)
        assert left.seconds() == 15 + 2 * 20
        for step in range(11, 21):
            left.step_ended(step, 20.0 + step)
        assert left.seconds() == 5 + 2 * 20  # that of step 20 is going on

    def test_nobody_knows_before_the_second_step(self):
        left = TimeLeft(5, 9, 2, 0.0)
        assert left.seconds() is None
        left.step_ended(6, 1.0)
        assert left.seconds() is None
        assert TimeLeft(9, 9, 2, 0.0).seconds() == 0.0
