"""Room: `myllm generate`: a prompt → texts on standard output, or in a file."""

from __future__ import annotations

import dataclasses
import io
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from myllm.checks import Limits, check_range, check_ranges
from myllm.cli.named import loaded
from myllm.cli.parse import Computing, given
from myllm.cli.prompt import prompt_of
from myllm.cli.verb import Verb
from myllm.config import SAMPLING_LIMITS, SamplingConfig, positional
from myllm.errors import ConfigError, InputError
from myllm.system.atomic import write_errors, write_file
from myllm.system.terminal import Screen, say

if TYPE_CHECKING:
    from myllm.run import Run

LIMITS: Limits = {"num_samples": (1, 10**6)}
MOST_DRAWN_SEED = 10**6  # one that is drawn is short enough to be typed


@dataclass(frozen=True)
class GenerateOptions(Computing):
    """Write text with a trained model."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "myllm generate Once upon a time",
        "myllm generate --prompt-file start.txt --out new.txt",
        'myllm generate --sample-seed 1 -- "- begins with -"',
    )

    prompt: tuple[str, ...] = positional(())  # the beginning of the text (none: the model begins)
    prompt_file: str | None = None  # the file that holds the prompt; - is standard input
    num_samples: int = 1  # write so many texts, with the seeds S, S + 1, … (shown before each)
    out: str | None = None  # a new file for what is written (None: it is shown)
    sampling: dict[str, Any] = given(SamplingConfig)


def generate(options: GenerateOptions) -> None:
    """Streams the texts to standard output, or writes them to a file."""
    sampling = _checked(options)  # before the model is loaded
    prompt = prompt_of(options.prompt, options.prompt_file)
    out = None if options.out is None else _free(options.out)

    run = loaded(options)
    if out is None:
        _write(run, prompt, sampling, options.num_samples, Screen(sys.stdout))
        return
    held = io.StringIO()
    _write(run, prompt, sampling, options.num_samples, Screen(held))
    content = held.getvalue().encode("utf-8", "replace")
    with write_errors("write the text", out.parent, len(content), "nothing is there yet"):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_file(out, content)
    say(f"{out}: written ({len(held.getvalue()):,} characters)")


def _checked(options: GenerateOptions) -> SamplingConfig:
    sampling, n = SamplingConfig(**options.sampling).validate(), options.num_samples
    check_ranges(options, LIMITS)
    if n == 1:
        return sampling
    if sampling.temperature == 0 or sampling.top_k == 1:
        setting = "temperature 0" if sampling.temperature == 0 else "top_k 1"
        raise ConfigError(
            f"num_samples {n} with {setting}: this would be the same text {n} times; leave out one"
        )
    if sampling.sample_seed is None:
        return dataclasses.replace(sampling, sample_seed=secrets.randbelow(MOST_DRAWN_SEED))
    least, most = SAMPLING_LIMITS["sample_seed"]
    check_range("sample_seed", sampling.sample_seed, least, most - n + 1)
    return sampling


def _free(out: str) -> Path:
    """Where nothing is yet: what somebody has there is not written over."""
    if out == "-":
        raise ConfigError("--out -: without --out the text goes to standard output")
    path = Path(out)
    with write_errors("write the text", path.parent, 0):
        if path.is_dir():
            raise InputError(
                f"{path} is a folder: --out names a new file (the folder of runs is --runs-dir)"
            )
        if path.exists() or path.is_symlink():
            raise InputError(f"{path} exists: name another --out, or remove it")
    return path


def _write(run: Run, prompt: str, sampling: SamplingConfig, n: int, screen: Screen) -> None:
    values = {field.name: getattr(sampling, field.name) for field in dataclasses.fields(sampling)}
    for i in range(n):
        if n > 1:
            values["sample_seed"] = (sampling.sample_seed or 0) + i
            line_end = "\n" if i else ""
            screen.write(f"{line_end}--- {i + 1} of {n} (seed {values['sample_seed']}) ---\n")
        _show(prompt, run.stream(prompt, **values), screen)


def _show(prompt: str, pieces: Iterable[str], screen: Screen) -> None:
    screen.write(prompt)
    for piece in pieces:
        screen.write(piece)
    screen.end()


VERB = Verb(GenerateOptions, generate)
