"""Room: prompt → text: streaming, `TextGenerator`. Knows nothing of training.

prompt ──encode──▶ window ──prefill──▶ logits ──next_token──▶ id ──decode──▶ text
                              ▲───────── one token at a time ─────┘
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from myllm.config import SamplingConfig
from myllm.generate.characters import Characters
from myllm.generate.decode import prefill
from myllm.generate.sampling import next_token
from myllm.model.cache import KVCache
from myllm.model.gpt import GPTModel
from myllm.runs.folder import find_run
from myllm.runs.taught import knows_beginnings, never_taught
from myllm.runs.weights import load_model
from myllm.system.device import choose_device
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

FOREIGN = 0.85  # of a prompt: more of it than this is worth a word


class TextGenerator:
    """A model and its tokenizer: text in, text out.

    The text is a function of the prompt, the settings and the seed; `stream` and `generate` give
    the same one.
    """

    def __init__(
        self,
        model: GPTModel,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
        knows_beginnings: bool = False,
        never: Sequence[int] = (),
    ) -> None:
        """
        Args:
            model: used in evaluation mode while it writes.
            tokenizer: the one it was trained with.
            device: where to; by default where the model is.
            knows_beginnings: whether it has seen documents begin after end of text, as one that
                learned from a single document has not. It then begins a document where there is
                no prompt; else a line, which every model can.
            never: ids that are not written: those of tokens it has never been taught.
        """
        self.device = torch.device(device or model.token_embedding.weight.device)
        self.model = model.to(self.device)
        self.tokenizer = tokenizer
        self.knows_beginnings, self._never = knows_beginnings, never
        self._without_token = torch.tensor(
            tokenizer.ids_without_token(model.config.vocab_size), dtype=torch.long
        )
        self._foreign_announced = False

    @classmethod
    def from_run(
        cls,
        run: str | None = None,
        runs_dir: str | Path = "checkpoints",
        device: str | None = None,
    ) -> TextGenerator:
        """The best model of a run, by name or path; without one, of the newest run in `runs_dir`.

        Raises:
            InputError: no such run.
            CheckpointError: no good checkpoint.
        """
        chosen = choose_device(device)
        folder = find_run(Path(runs_dir), run)
        model, tokenizer, _ = load_model(folder, chosen)
        return cls(model, tokenizer, chosen, knows_beginnings(folder), never_taught(folder))

    def generate(self, prompt: str = "", sampling: SamplingConfig = SamplingConfig()) -> str:
        """The text that follows `prompt`, without it."""
        return "".join(self.stream(prompt, sampling))

    def stream(
        self, prompt: str = "", sampling: SamplingConfig = SamplingConfig()
    ) -> Iterator[str]:
        """The text that follows `prompt`, in pieces of whole characters as they come.

        Args:
            prompt: any text; of one longer than the context the last part is read. Without one a
                new document begins, or a line (see `encode_prompt`), and it begins with a line in
                which there is something.
            sampling: how tokens are chosen, and when to stop.

        Raises:
            ConfigError: a setting out of its limits.
        """
        pieces = self._pieces(self.encode_prompt(prompt), sampling)
        return _until_stop(pieces if prompt else _without_empty_lines(pieces), sampling.stop)

    def stream_after(self, ids: list[int], sampling: SamplingConfig) -> Iterator[str]:
        """As `stream`, after a prompt of these ids."""
        return _until_stop(self._pieces(ids, sampling), sampling.stop)

    def _pieces(self, ids: list[int], sampling: SamplingConfig) -> Iterator[str]:
        new_ids = self.stream_ids(ids, sampling.validate())
        return self._characters.text(self._characters.unfinished(ids), new_ids)

    def encode_prompt(self, prompt: str) -> list[int]:
        """The ids of a prompt; without one, of what a text begins after: end of text where the
        model has seen documents begin there, else a line end. Announces unknowns."""
        ids = self.tokenizer.encode(prompt)
        if not self._foreign_announced:
            self._foreign_announced = self._announce_foreign(np.array(ids))
        return self.tokenizer.prefix_ids + ids or self._start()

    def _announce_foreign(self, ids: np.ndarray) -> bool:
        """Tells of a prompt that the model can hardly read."""
        if unknown := self.tokenizer.count_unknown(ids):
            log.warning(
                "%d of %d characters of the prompt (%s) do not occur in the training text",
                unknown, len(ids), f"{unknown / len(ids):.0%}",
            )  # fmt: skip
        elif (share := self.tokenizer.foreign_share(ids)) > FOREIGN:
            log.warning(
                "%s of the prompt is spelled byte by byte: hardly a piece of it is common in the "
                "text that the model learned from", f"{share:.0%}",
            )  # fmt: skip
        else:
            return False
        return True

    def _start(self) -> list[int]:
        if self.knows_beginnings:
            return [self.tokenizer.eos_token_id]
        return self.tokenizer.line_start()

    @cached_property
    def _characters(self) -> Characters:
        """Worked out at first use: a model can be loaded for other things."""
        return Characters(self.tokenizer, self.model.config.vocab_size, self._never)

    def stream_ids(self, ids: list[int], sampling: SamplingConfig) -> Iterator[int]:
        """The ids that follow `ids`, up to end of text (which is not given out)."""
        seed = secrets.randbits(62) if sampling.sample_seed is None else sampling.sample_seed
        ids = list(ids)
        window, state = TextWindow(self.model), self._characters.state_after(ids)
        rng = torch.Generator()
        for _ in range(sampling.max_new_tokens):
            logits = self._characters.masked(self._next_logits(window, ids), state)  # (V,)
            # A draw is a function of seed and position: a resumed text is the same text.
            if sampling.temperature:
                rng.manual_seed((seed + len(ids) * 0x9E3779B1) % 2**63)
            context = ids[window.start :] if sampling.repetition_penalty != 1 else ()
            id = next_token(logits, sampling, rng, context)
            if id in self.tokenizer.end_ids and not sampling.ignore_end:
                return
            ids.append(id)
            state = self._characters.after(state, id)
            yield id

    def next_probabilities(self, prompt: str, k: int = 10) -> list[tuple[str, float]]:
        """The k likeliest next tokens after `prompt`, as text, with their probabilities."""
        ids = self.encode_prompt(prompt)
        probabilities = self._next_logits(TextWindow(self.model), ids).softmax(-1)  # (V,)
        values, best = probabilities.topk(min(k, len(probabilities) - len(self._without_token)))
        return [(self._shown(id), p) for id, p in zip(best.tolist(), values.tolist())]

    def _shown(self, id: int) -> str:
        if id in self.tokenizer.end_ids:
            return "end of text"
        return self.tokenizer.token_bytes(id).decode("utf-8", errors="backslashreplace")

    def _next_logits(self, window: TextWindow, ids: list[int]) -> Tensor:
        """The logits (V,) of what follows, float32 on the CPU; -inf for ids without a token, which
        a padded vocabulary has."""
        with self._evaluating():
            logits = window.next_logits(ids).float().cpu()  # (V,)
            if len(self._without_token):
                logits = logits.index_fill(0, self._without_token, -torch.inf)
        return logits

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        """No dropout and no gradients; the model's mode is put back, as it may be in training."""
        was_training = self.model.training
        if was_training:  # asked, as to say it to every module takes as long as a token
            self.model.eval()
        try:
            with torch.inference_mode():
                yield
        finally:
            if was_training:
                self.model.train()


class TextWindow:
    """Feeds a growing text to a model, each token once while the context has room.

    When it is full, the older half is let go and the rest read anew: on average two tokens are
    computed per token written, whatever the length. Where the window starts is a function of the
    text's length alone, so the cached logits equal those of the plain model on that window.
    """

    def __init__(self, model: GPTModel) -> None:
        self.model = model
        self.start = 0  # of the window in the text
        self._cache = KVCache(model.config)
        self._device = model.token_embedding.weight.device

    def next_logits(self, ids: list[int]) -> Tensor:
        """The logits (V,) of what follows `ids`, which extend those of the last call."""
        start = window_start(len(ids), self.model.config.context_length)
        if start != self.start:
            self.start, self._cache = start, KVCache(self.model.config)
        unread = ids[start + sum(self._cache.lengths) :]  # of the one row
        tokens = torch.from_numpy(np.array([unread], np.int64)).to(self._device)  # (1, T)
        return prefill(self.model, tokens, self._cache)[0]  # (V,)


def window_start(n_tokens: int, context_length: int) -> int:
    """Where the part of a text of `n_tokens` begins that a model of this context reads.

    It moves by half a context at a time.

    >>> [window_start(n, 8) for n in (7, 8, 9, 12, 13)]
    [0, 0, 4, 4, 8]
    """
    stride = max(1, context_length // 2)
    return max(0, -(-(n_tokens - context_length) // stride) * stride)


def _without_empty_lines(pieces: Iterable[str]) -> Iterator[str]:
    """The pieces from the first line on in which there is something."""
    held, pieces = "", iter(pieces)
    for piece in pieces:
        held += piece
        if text := held.lstrip():
            indent = held[: len(held) - len(text)]
            yield indent[indent.rfind("\n") + 1 :] + text
            yield from pieces


def _until_stop(pieces: Iterable[str], stop: tuple[str, ...]) -> Iterator[str]:
    """The pieces up to the first of the stop strings; what may begin one is held back."""
    held = ""
    for piece in pieces:
        held += piece
        ends = [at for s in stop if (at := held.find(s)) >= 0]
        if ends:
            yield held[: min(ends)]
            return
        safe = len(held) - max((_overlap(held, s) for s in stop), default=0)
        if safe:
            yield held[:safe]
            held = held[safe:]
    if held:
        yield held


def _overlap(text: str, stop: str) -> int:
    """How long an end of `text` is that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
