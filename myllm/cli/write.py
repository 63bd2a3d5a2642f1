"""Room: `myllm write` and `myllm chat`: a person at a terminal ↔ a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from myllm.cli.named import loaded
from myllm.cli.parse import Computing, given
from myllm.cli.verb import Verb
from myllm.config import SamplingConfig


@dataclass(frozen=True)
class WriteOptions(Computing):
    """Write together with a trained model, line by line (interactive mode)."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm write",
        "myllm write --run mine",
        "myllm write --temperature 0.7 --max-new-tokens 50",
    )

    history: bool = True  # keep what is typed in ~/.myllm_history, for the up key
    sampling: dict[str, Any] = given(SamplingConfig)


@dataclass(frozen=True)
class ChatOptions(WriteOptions):
    """Talk with a model that was trained to answer; with any other one, the same as write."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm chat",
        "myllm chat --run mine",
        "myllm chat --temperature 0.7",
    )


def write(options: WriteOptions) -> None:
    """The interactive mode."""
    sampling = SamplingConfig(**options.sampling).validate()
    from myllm.cli.writer import Writer
    from myllm.runs.taught import a_beginning
    from myllm.system.terminal import say

    run = loaded(options)
    if isinstance(options, ChatOptions):
        say(_why_no_chat(run.tokenizer.chat_template, run.name))
    Writer(run.generator, sampling, None, options.history, a_beginning(run.folder)).run()


def _why_no_chat(template: str | None, name: str) -> str:
    if template is None:
        return f"{name} was not trained to answer, only to continue a text: this is myllm write"
    return f"{name} has a chat template, which is not applied yet: this is myllm write"


VERB = Verb(WriteOptions, write)
CHAT = Verb(ChatOptions, write)
