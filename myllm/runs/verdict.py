"""Room: the losses that a run has measured → what they say of it, in one sentence.

Pure: numbers in, words out. Knows nothing of files, models or screens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from myllm.system.units import short_times

# Two evaluations of the same text by neighbouring models differ by some 0.3 nats a token, half of
# them up, half of them down: over n tokens by 0.3 / √n, of which three standard deviations are 1.
TOKEN_NOISE = 1.0
SIGMAS = 4.0  # of the noise that the losses themselves show: what counts as worse
LEAST_NOISE, MOST_NOISE = 0.005, 0.1  # of the best loss: one sigma; what is worse in any case
LATEST = 3  # so many evaluations must agree, or those that there are since the best one
PLAIN_RISE = 0.12  # of the best loss: so much is no noise, and two are enough
FEW_TOKENS = 100  # held out: with fewer, a loss is known to some tenths of a nat only
HARDLY = 0.97  # of the loss of guessing by frequency: above it next to nothing was learned
# so much of the training loss is left, where the other has not fallen any more: the text is being
# learned by heart, however small the rise still is
BY_HEART, SLIGHT_RISE = 0.5, 0.015
# of the validation loss: where the training loss is less, the model is large enough for its text
APART = 0.8
LAST_PART, STILL_FALLING = 0.3, 0.01  # of the run; of the loss


class Point(NamedTuple):
    """An evaluation: after how many steps, the loss on training text since the last one, and on
    the text held out; nats per token."""

    step: int
    train_loss: float
    val_loss: float


@dataclass(frozen=True)
class Facts:
    """What else a verdict depends on.

    Attributes:
        n_train_tokens: that the run learns from.
        n_val_tokens: that are held out.
        tokens_per_step: that a step learns from.
        max_steps: of the whole run, if it is not stopped.
        unigram_loss: what the text held out costs whoever knows nothing but how often each token
            occurs, nats per token.
    """

    n_train_tokens: int
    n_val_tokens: int
    tokens_per_step: int
    max_steps: int
    unigram_loss: float = math.inf

    def times_seen(self, step: int) -> float:
        """How often the text has been gone through."""
        return step * self.tokens_per_step / max(1, self.n_train_tokens)

    def share_seen(self, step: int) -> str:
        """How much of the text has been seen, where that is not all of it yet.

        >>> Facts(10_000, 1_000, 100, 600).share_seen(14)
        '14%'
        """
        share = self.times_seen(step)
        if share < 1e-4:
            return "next to none"
        return f"{share:.0%}" if share >= 0.01 else f"{share:.2%}"


@dataclass(frozen=True)
class Verdict:
    """What the losses say.

    Attributes:
        kind: unmeasured, not finite, overfitted, too little text, too few evaluations, learned
            nothing, diverged, still improving, levelled off.
        sentence: the same for a person.
        more_steps: so many steps in all would help; None: more steps would not.
    """

    kind: str
    sentence: str
    more_steps: int | None = None


def points_of(records: Iterable[Mapping[str, Any]]) -> list[Point]:
    """The evaluations among the records of a `metrics.jsonl`."""
    rows: list[list[Any]] = [[r.get(name) for name in Point._fields] for r in records]
    numbers = [row for row in rows if all(isinstance(v, (int, float)) for v in row)]
    return [Point(int(step), float(train), float(val)) for step, train, val in numbers]


def best_of(points: Sequence[Point]) -> Point | None:
    """The evaluation with the lowest loss, the first of equals; None if there is none."""
    finite = [p for p in points if math.isfinite(p.val_loss)]
    return min(finite, key=lambda p: p.val_loss, default=None)


def overfitting(points: Sequence[Point], facts: Facts) -> Point | None:
    """The best evaluation, if since then the model has learned its text by heart; else None.

    That is: the last three evaluations are worse than it by more than the noise, or two plainly,
    while the loss on the training text has gone on falling, and the text has been seen more than
    once. Where that loss has fallen far, three that rise slightly are enough.
    """
    best = best_of(points)
    if best is None or facts.times_seen(points[-1].step) < 1:
        return None
    later = [p for p in points if p.step > best.step]
    if not later or not all(math.isfinite(p.val_loss) for p in later[-LATEST:]):
        return None
    if not later[-1].train_loss < best.train_loss:
        return None
    noise, plain = _noise(points, facts, best), PLAIN_RISE * best.val_loss
    by_noise = len(later) > 1 and all(p.val_loss > best.val_loss + noise for p in later[-LATEST:])
    plainly = all(p.val_loss > best.val_loss + plain for p in later[-2:])
    slight = best.val_loss + max(SLIGHT_RISE * best.val_loss, _token_noise(facts))
    by_heart = (
        len(later) >= LATEST
        and later[-1].train_loss < BY_HEART * best.train_loss
        and slight < later[-3].val_loss < later[-2].val_loss < later[-1].val_loss
    )
    return best if by_noise or plainly or by_heart else None


def warning(points: Sequence[Point], facts: Facts) -> str | None:
    """What is to be said in the middle of a run, as soon as it is true."""
    best = overfitting(points, facts)
    if best is None or len(points) < 2 or points[-2].step == best.step:
        return None  # at the end one evaluation may tell, before there will be more
    return (
        f"the validation loss has risen since step {best.step}: the model begins to learn the "
        f"text by heart (it has seen it {facts.times_seen(points[-1].step):,.0f} times)"
    )


def verdict(points: Sequence[Point], facts: Facts) -> Verdict:
    """What a run that has ended came to.

    Args:
        points: its evaluations, in order.
        facts: of its text and settings.

    >>> facts = Facts(10_000, 1_000, 1_000, 300, unigram_loss=5.0)
    >>> falling = [Point(100, 4.0, 4.0), Point(200, 3.0, 3.5), Point(300, 2.5, 3.2)]
    >>> verdict(falling, facts).kind
    'still improving'
    """
    best = best_of(points)
    if not points:
        return Verdict("unmeasured", "nothing was measured yet")
    if best is None or not math.isfinite(points[-1].val_loss):
        return Verdict("not finite", "the losses are not finite: take a lower --learning-rate")
    if overfitting(points, facts):
        return Verdict("overfitted", _overfitted(points[-1], best, facts))
    if facts.n_val_tokens < FEW_TOKENS:
        return Verdict(
            "too little text",
            f"only {facts.n_val_tokens} tokens are held out, too little text to tell how well "
            "the model does: give more text",
        )
    if best.val_loss > HARDLY * facts.unigram_loss:
        return _learned_nothing(best, facts)
    if len(points) == 1:
        return Verdict(
            "too few evaluations",
            "a single evaluation does not tell whether more steps would help: a smaller "
            "--eval-interval makes more of them",
        )
    if _diverged(points, facts, best):
        return Verdict(
            "diverged",
            f"both losses have risen since step {best.step}, of which the model was kept: take a "
            "lower --learning-rate",
        )
    return _at_the_end(points, facts, best)


def _noise(points: Sequence[Point], facts: Facts, best: Point) -> float:
    """By how much a loss must be above the best to be worse, in nats."""
    losses = [p.val_loss for p in points if math.isfinite(p.val_loss)]
    bends = [a - 2 * b + c for a, b, c in zip(losses, losses[1:], losses[2:])]
    bends = bends[-max(3, len(bends) // 2) :]  # the first ones are those of the fall
    # a smooth curve hardly bends; of noise a bend has six times the variance
    variance = sum(b * b for b in bends) / len(bends) / 6 if bends else 0.0
    sigma = math.sqrt(variance + (LEAST_NOISE * best.val_loss) ** 2)
    return max(
        min(SIGMAS * sigma, MOST_NOISE * best.val_loss),
        _token_noise(facts),
    )


def _token_noise(facts: Facts) -> float:
    return TOKEN_NOISE / math.sqrt(max(1, facts.n_val_tokens))


def _overfitted(last: Point, best: Point, facts: Facts) -> str:
    return (
        f"the model has begun to learn the text by heart: the validation loss was lowest at step "
        f"{best.step} of {facts.max_steps} ({best.val_loss:.4f}) and rose to {last.val_loss:.4f} "
        f"by step {last.step}; generate uses the checkpoint of step {best.step}; more text would "
        "help, or a smaller model"
    )


def _learned_nothing(best: Point, facts: Facts) -> Verdict:
    where = "above" if best.val_loss > facts.unigram_loss else "hardly below"
    sentence = (
        f"the model has hardly learned anything: its loss, {best.val_loss:.4f}, is {where} "
        f"{facts.unigram_loss:.4f}, that of guessing by how often each token occurs; "
    )
    if facts.times_seen(facts.max_steps) > 20:
        return Verdict("learned nothing", sentence + "try another --learning-rate")
    more = max(2 * facts.max_steps, 200)
    return Verdict("learned nothing", sentence + "it needs more steps", more)


def _diverged(points: Sequence[Point], facts: Facts, best: Point) -> bool:
    later = [p for p in points if p.step > best.step][-2:]
    if not points[-1].train_loss >= best.train_loss:
        return False
    limit = best.val_loss + max(_noise(points, facts, best), PLAIN_RISE * best.val_loss)
    return len(later) == 2 and all(p.val_loss > limit for p in later)


def _at_the_end(points: Sequence[Point], facts: Facts, best: Point) -> Verdict:
    """Of a run whose loss is not worse than it was: whether it was still falling."""
    last = points[-1]
    start = (1 - LAST_PART) * last.step
    before = [p for p in points[:-1] if p.step <= start and math.isfinite(p.val_loss)]
    reference = best_of(before) or points[0]
    fell = (reference.val_loss - best.val_loss) / max(1e-9, reference.val_loss)
    if fell > STILL_FALLING and best.step > reference.step:
        times = facts.times_seen(last.step)
        seen = (
            f"{short_times(times)} times through"
            if times >= 1
            else f"{facts.share_seen(last.step)} of"
        )
        sentence = (
            f"the validation loss was still falling at the end, after {seen} the text: more steps "
            "would help"
        )
        return Verdict("still improving", sentence, 2 * facts.max_steps)
    what = (
        "more text" if last.train_loss < APART * best.val_loss else "more text or a larger model"
    )
    return Verdict(
        "levelled off",
        f"the validation loss has levelled off: more steps would change little, {what} might help",
    )
