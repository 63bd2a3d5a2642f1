"""Room: a run folder → what a person does with a trained model: write, measure, export."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from myllm.checks import check_range
from myllm.config import RunConfig, SamplingConfig, with_values
from myllm.data.dataset import TextDataset
from myllm.data.prepare import encode_text
from myllm.data.token_file import Ids
from myllm.generate.generator import TextGenerator
from myllm.model.gpt import GPTModel
from myllm.registry import unknown
from myllm.runs.folder import RunFolder
from myllm.runs.remove import delete_run, prune_run
from myllm.runs.summary import Summary, summary_of
from myllm.runs.taught import knows_beginnings, never_taught
from myllm.runs.verify import Finding, check_run
from myllm.runs.weights import load_model
from myllm.system.device import autocast, choose_device, choose_dtype
from myllm.tokenizer.base import Tokenizer
from myllm.train.evaluate import Evaluation, evaluate
from myllm.train.likeness import tell_if_foreign, tell_if_learned
from myllm.train.outcome import Outcome
from myllm.train.own_text import own_text
from myllm.train.sequences import evaluated_length, sequence_length
from myllm.train.state import TrainState
from myllm.train.trainer import MAX_ROLLBACKS

if TYPE_CHECKING:
    from myllm.formats import ExportResult

log = logging.getLogger(__name__)


class Run:
    """A training run: its model, its settings, its figures. Made by `train`, `load`, `runs` or
    `import_model`.

    >>> run = load("novel")
    >>> run.name
    'novel'
    >>> run.config.train.max_steps
    6
    >>> run
    Run('checkpoints/novel')
    """

    def __init__(
        self,
        folder: RunFolder,
        device: str | None = None,
        state: TrainState | None = None,
        checkpoint: str | int = "best",
        outcome: Outcome | None = None,
    ) -> None:
        """
        Args:
            folder: of the run.
            device: where its model computes: cpu, cuda, mps; by default the best one here.
            state: what training ended at, if it has just been trained.
            checkpoint: which one is used: best, last, or a step that is kept.
            outcome: what training came to.

        Raises:
            InputError: there is no such checkpoint.
        """
        self.folder, self.device, self.state, self.outcome = folder, device, state, outcome
        folder.checkpoints.choose(checkpoint)

    def __repr__(self) -> str:
        return f"Run({self.path.as_posix()!r})"

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.folder.name

    @property
    def path(self) -> Path:
        """The run's folder, which can be copied to another machine."""
        return self.folder.path

    @property
    def config(self) -> RunConfig:
        """All settings of the run."""
        return self.folder.config

    @property
    def summary(self) -> Summary:
        """The run at a glance: what `myllm runs` shows of it.

        >>> summary = load("novel").summary
        >>> summary.step, summary.is_finished, summary.damage
        (6, True, None)
        """
        return summary_of(self.folder)

    @cached_property
    def generator(self) -> TextGenerator:
        """The model of the run with its tokenizer, loaded at first use.

        Raises:
            CheckpointError: no good checkpoint.
        """
        device = choose_device(self.device)
        model, tokenizer, _ = load_model(self.folder, device)
        return TextGenerator(
            model, tokenizer, device, knows_beginnings(self.folder), never_taught(self.folder)
        )

    @property
    def model(self) -> GPTModel:
        """The model of the run, by default the best one: a PyTorch module, ready to use."""
        return self.generator.model

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return self.generator.tokenizer

    def generate(self, prompt: str = "", **sampling: Any) -> str:
        """The text that follows `prompt`, without it.

        Args:
            prompt: any text; without one a text begins.
            sampling: fields of `SamplingConfig`, such as max_new_tokens, temperature, top_p.

        Raises:
            ConfigError: an unknown setting, or a value out of its limits.

        >>> text = load("novel").generate("Once upon", max_new_tokens=5, sample_seed=1)
        >>> isinstance(text, str)
        True
        """
        return self.generator.generate(prompt, _sampling(sampling))

    def stream(self, prompt: str = "", **sampling: Any) -> Iterator[str]:
        """As `generate`, in pieces of whole characters as they come.

        >>> run = load("novel")
        >>> pieces = list(run.stream("Once upon", max_new_tokens=5, sample_seed=1))
        >>> "".join(pieces) == run.generate("Once upon", max_new_tokens=5, sample_seed=1)
        True
        """
        return self.generator.stream(prompt, _sampling(sampling))

    def evaluate(
        self,
        text: str | Path | None = None,
        encoding: str = "utf-8",
        encoding_errors: str = "strict",
        **reading: Any,
    ) -> Evaluation:
        """How well the model predicts a text.

        Args:
            text: a file or folder, also one that `prepare` made; by default the run's validation
                split.
            encoding: of the text's files.
            encoding_errors: what to do about undecodable bytes: strict, replace, ignore.
            reading: other fields of `Reading`: text_field, separator, …

        Raises:
            InputError: the text cannot be read, or is too short.

        >>> measured = load("novel").evaluate("novel.txt")
        >>> measured.perplexity > 1 and measured.bits_per_byte > 0
        True
        """
        tokenizer = self.generator.tokenizer
        if text is None:
            token_file = own_text(
                self.folder, self.config, tokenizer,
                f", or measure another text: myllm evaluate PATH --run {self.folder.resume_name}",
            )  # fmt: skip
            ids, ranges = token_file.tokens(), token_file.val_ranges
        else:
            values = {**reading, "encoding": encoding, "encoding_errors": encoding_errors}
            how = with_values(RunConfig(), values).text.validate()
            measured = encode_text(str(text), tokenizer, how)
            tell_if_learned(str(text), measured, self.folder, self.config)
            ids = measured.ids
            ranges = [(0, len(ids))]
        _tell_unknown(str(text or "validation split"), tokenizer, ids)
        # evaluated as the trainer does it, so that the figures agree
        device = self.generator.device
        precision = autocast(device, choose_dtype(device, self.config.train.dtype))
        found = evaluate(
            self.generator.model, ids, ranges, tokenizer.byte_counts(), 32, precision,
            evaluated_length(self.config),
        )  # fmt: skip
        if text is not None:
            tell_if_foreign(str(text), found, self.folder)
        return found

    def export(
        self,
        format: str,
        out: str | Path | None = None,
        quantize: str | None = None,
        verify: bool = True,
    ) -> ExportResult:
        """Writes the model for other programs, and reads it back with one of them.

        Args:
            format: hf (transformers, vLLM), gguf (llama.cpp, Ollama, LM Studio), onnx.
            out: the file or folder to make; by default it is named after the run.
            quantize: the type of the weights, of gguf.
            verify: read it back with the independent program, where that is installed.

        Returns:
            The path, and the comparison or None.

        Raises:
            ExportError: the other program computes something else.
            InputError: `out` exists.

        >>> load("novel").export("hf", "novel-hf", verify=False).path.name
        'novel-hf'
        """
        from myllm.formats import export

        out = Path(out) if out is not None else None
        return export(self.folder, format, out, {"quantize": quantize}, verify)

    def metrics(self) -> list[dict[str, Any]]:
        """What was measured at each evaluation, oldest first.

        >>> [record["step"] for record in load("novel").metrics()]
        [3, 6]
        """
        return self.folder.metrics()

    def verify(self) -> list[Finding]:
        """Every file of the run, with what is wrong with it.

        >>> any(finding.damage for finding in load("novel").verify())
        False
        """
        return check_run(self.folder)

    def delete(self) -> int:
        """Deletes the run with all its checkpoints, without asking; its text stays.

        Returns:
            The bytes that are free.

        Raises:
            InputError: it is in use, or its folder holds anything else.
        """
        return delete_run(self.folder)

    def prune(self) -> int:
        """Removes what using the model does not need: all checkpoints but the best and the last
        and, if all its steps are done, what only resuming it needs.

        Returns:
            The bytes that are free.

        Raises:
            InputError: it is in use, or its folder holds anything else.
        """
        return prune_run(self.folder).n_bytes

    def batch(self, step: int) -> Iterator[tuple[int, str]]:
        """The sequences that a training step learned from: where each begins, and its text.

        Raises:
            ConfigError: a step that the run does not have.
            InputError: the text is missing, or it is another one by now.

        >>> next(load("novel").batch(0))[1] in open("novel.txt").read()
        True
        """
        config, tokenizer = self.config, self.folder.tokenizer
        check_range("step", step, 0, config.train.max_steps - 1 + MAX_ROLLBACKS)
        token_file = own_text(self.folder, config, tokenizer)
        tokens, T = token_file.tokens(), sequence_length(config.model, config.train)
        batch_size = config.train.batch_size * config.train.accumulation_steps
        data = TextDataset(tokens, token_file.train_ranges, T, batch_size, config.train.seed)
        for start in data.sequence_starts(step):
            ids = [int(token) for token in tokens[start : start + T + 1]]
            yield int(start), tokenizer.decode(ids)


def _tell_unknown(name: str, tokenizer: Tokenizer, ids: Ids) -> None:
    if n_unknown := tokenizer.count_unknown(ids):
        log.warning(
            "%s: %d of %d characters (%s) do not occur in the training text; bits per byte "
            "counts each as an unknown one",
            name, n_unknown, len(ids), f"{n_unknown / len(ids):.2%}",
        )  # fmt: skip


def _sampling(values: dict[str, Any]) -> SamplingConfig:
    known = SamplingConfig.__dataclass_fields__
    for name in values:
        if name not in known:
            raise unknown("setting", name, known)
    stop = values.get("stop", ())
    values = {**values, "stop": (stop,) if isinstance(stop, str) else tuple(stop)}
    return SamplingConfig(**values).validate()
