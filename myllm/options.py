"""Room: the arguments of a verb → its options, one dataclass each. Imports no torch to do so.

The knobs are those of `config.py`; here is only what belongs to the command line.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from myllm.config import (
    DataConfig,
    GPTConfig,
    RunConfig,
    SamplingConfig,
    default_config,
    read_toml,
    with_values,
)
from myllm.errors import ConfigError

# going on from a trained model: smaller steps than from nothing
FINE_TUNING = {"learning_rate": 5e-4, "dropout": 0.0}
Flat = tyro.conf.OmitArgPrefixes
From = Annotated[str | None, tyro.conf.arg(name="from")]  # which is a keyword of Python
T = TypeVar("T")


@dataclass(frozen=True)
class Common:
    """What every verb has."""

    out: str = "checkpoints"  # the folder of runs
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class TextOptions(DataConfig):
    """The text: where it comes from, and how it becomes tokens."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()  # files, folders, or - for standard input


@dataclass(frozen=True)
class SamplingOptions(SamplingConfig):
    """How the next token is chosen."""

    # once per string: a flag that takes several would swallow the prompt behind it
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # end at this string (may be repeated)


@dataclass(frozen=True)
class TrainOptions(RunConfig):
    """Train a model on texts: files, folders, - for standard input; without any, on the Python
    manual."""

    text: TextOptions = field(default_factory=TextOptions)
    run: str | None = None  # the run's name (None: after the text)
    resume: str | None = None  # go on with this run
    from_run: From = None  # begin with this run's model (None: from nothing)
    config: str | None = None  # a TOML file of settings; flags go before it
    out: str = "checkpoints"  # the folder of runs
    quiet: bool = False  # print the result only
    named: tyro.conf.Suppress[tuple[str, ...]] = ()  # the settings that flags and file name
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class GenerateOptions(Common):
    """Write text with a trained model."""

    prompt: tyro.conf.Positional[str] = ""  # the beginning of the text
    run: str | None = None  # the run's name or folder (None: the newest)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass(frozen=True)
class ChatOptions(Common):
    """Write together with a trained model, line by line (interactive mode)."""

    run: str | None = None  # the run's name or folder (None: the newest)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


@dataclass(frozen=True)
class EvaluateOptions(Common):
    """Measure how well a trained model predicts texts: loss, perplexity, bits per byte."""

    paths: tyro.conf.Positional[tuple[str, ...]] = ()  # texts (none: the run's validation split)
    run: str | None = None  # the run's name or folder (None: the newest)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    encoding: str = "utf-8"  # how the text files are encoded
    encoding_errors: str = "strict"  # undecodable bytes: strict, replace, ignore


@dataclass(frozen=True)
class PrepareOptions:
    """Turn texts into a folder of tokens, to train on it later (myllm train FOLDER)."""

    text: TextOptions = field(default_factory=TextOptions)
    vocab_size: int = 0  # tokens in the vocabulary (0: chosen from the length of the text)
    out: str | None = None  # the folder to make (None: one in data_dir, named after the text)
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class VerifyOptions(Common):
    """Check every file of a run: checkpoints, settings, tokenizer, metrics."""

    run: tyro.conf.Positional[str | None] = None  # the run's name or folder (None: the newest)


@dataclass(frozen=True)
class InspectBatchOptions(Common):
    """Show the text of the batch that a training step learned from."""

    run: tyro.conf.Positional[str] = ""  # the run's name or folder
    step: tyro.conf.Positional[int] = 0  # the batch's number: that of the step, from 0 on


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained model for other programs: Hugging Face, GGUF, ONNX."""

    run: tyro.conf.Positional[str | None] = None  # the run's name or folder (None: the newest)
    to: str = "hf"  # hf (transformers, vLLM), gguf (llama.cpp, Ollama, LM Studio), onnx
    out: str | None = None  # the folder or file to make (None: named after the run)
    runs: str = "checkpoints"  # the folder of runs
    quantize: str | None = (
        None  # of gguf: f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0 (None: f32)
    )
    verify: bool = True  # read it back with the independent program, where that is installed
    debug: bool = False  # show the traceback of an error


@dataclass(frozen=True)
class ImportOptions(Common):
    """Make a run from a local Hugging Face folder (GPT-2, Llama, Qwen3), to use or train on."""

    path: tyro.conf.Positional[str] = ""  # the folder: config.json, tokenizer.json, safetensors
    run: str | None = None  # the run's name (None: that of the folder)


@dataclass(frozen=True)
class BenchmarkOptions:
    """Measure training and generation speed on this machine."""

    size: str | None = None  # cpu, gpu, 124m (None: what this machine trains in minutes)
    preset: str = "modern"  # layout: modern, gpt2, llama
    model: GPTConfig = field(default_factory=GPTConfig)
    batch_size: int = 16  # windows in one forward pass
    optimizer: str = "muon"  # muon, adamw
    dtype: str | None = None  # float32, bfloat16, float16 (None: what is fastest here)
    device: str | None = None  # cpu, cuda, mps (None: the best one here)
    iterations: int = 20  # timed repetitions
    debug: bool = False  # show the traceback of an error


def parse(options: type[T], verb: str, args: list[str]) -> T:
    """The options of a verb from its arguments.

    Raises:
        ConfigError: an argument that cannot be understood, in one line.
    """
    base = _defaults(options, verb, args)
    args = _switches_spelled_out(options, args)
    if "-h" in args or "--help" in args:
        return tyro.cli(options, prog=f"myllm {verb}", args=args, default=base, config=(Flat,))
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors), contextlib.redirect_stdout(errors):
            parsed, unknown = tyro.cli(
                options,
                prog=f"myllm {verb}",
                args=args,
                default=base,
                config=(Flat,),
                return_unknown_args=True,
            )
    except SystemExit:
        raise ConfigError(_message_of(errors.getvalue())) from None
    if unknown:
        known = [f"--{name.replace('_', '-')}" for name in _flag_types(options) if name != "paths"]
        name = unknown[0].split("=")[0].replace("_", "-")
        close = difflib.get_close_matches(name, known, n=3) or ["none of that kind"]
        raise ConfigError(
            f"unknown option {name}: near it {'is' if len(close) == 1 else 'are'} "
            f"{', '.join(close)}; myllm {verb} --help lists all"
        )
    if isinstance(parsed, TrainOptions):
        return dataclasses.replace(parsed, named=_named(args))
    return parsed


def _named(args: list[str]) -> tuple[str, ...]:
    """The settings that the user chose, by flag or in a file."""
    path = _value_of("config", args)
    flags = [arg.split("=")[0].removeprefix("--") for arg in args if arg.startswith("--")]
    return (*(flag.replace("-", "_") for flag in flags), *(read_toml(Path(path)) if path else ()))


def _defaults(options: type[T], verb: str, args: list[str]) -> T:
    """What the flags are laid over: size, preset, TOML file; or the run to resume."""
    if options not in (TrainOptions, BenchmarkOptions):
        return options()
    chosen = {
        name: _value_of(name, args) for name in ("preset", "size", "config", "resume", "from")
    }
    toml = read_toml(Path(chosen["config"])) if chosen["config"] else {}
    if chosen["resume"] is not None:
        from myllm.run_folder import find_run

        saved = find_run(Path(_value_of("out", args) or "checkpoints"), chosen["resume"]).config
        return typing.cast(T, _as_options(with_values(saved, toml)))
    if chosen["from"] is not None:
        from myllm.run_folder import find_run

        begun = find_run(Path(_value_of("out", args) or "checkpoints"), chosen["from"]).config
        start = dataclasses.replace(default_config(begun.preset, "cpu"), model=begun.model)
        start = with_values(start, {"tokenizer": begun.text.tokenizer, **FINE_TUNING})
        return typing.cast(T, _as_options(with_values(start, toml)))
    preset = chosen["preset"] or toml.get("preset", "modern")
    size = chosen["size"] or toml.get("size") or _machine_size(args, toml)
    base = with_values(default_config(str(preset), str(size)), toml)
    if options is TrainOptions:
        return typing.cast(T, _as_options(base))
    train_config = base.train
    benchmarked = BenchmarkOptions(base.size, base.preset, base.model, train_config.batch_size)
    return typing.cast(T, benchmarked)


def _as_options(config: RunConfig) -> TrainOptions:
    text = TextOptions(**_shared_values(config.text))
    return TrainOptions(
        config.preset, config.size, config.from_run, config.model, text, config.train
    )


def plain_text_config(text: DataConfig) -> DataConfig:
    """`text` as the class that runs keep, without the command line's marks."""
    return DataConfig(**_shared_values(text))


def _shared_values(text: DataConfig) -> dict[str, Any]:
    return {f.name: getattr(text, f.name) for f in dataclasses.fields(DataConfig)}


def _machine_size(args: list[str], toml: dict[str, Any]) -> str:
    """The size that this machine trains in minutes."""
    if "-h" in args or "--help" in args:
        return "cpu"  # help answers without torch
    from myllm.device import choose_device

    device = choose_device(_value_of("device", args) or toml.get("device"))
    return "gpu" if device.type == "cuda" else "cpu"


def _value_of(name: str, args: list[str]) -> str | None:
    """The value of a flag that decides over the defaults of others."""
    found = None
    for i, arg in enumerate(args):
        if arg == f"--{name}" and i + 1 < len(args):
            found = args[i + 1]
        elif arg.startswith(f"--{name}="):
            found = arg.split("=", 1)[1]
    return found


def _switches_spelled_out(options: type[Any], args: list[str]) -> list[str]:
    """`--compile` and `--no-compile` for a switch with a third state, None: let the program
    choose."""
    spelled = []
    for arg in args:
        name = arg.removeprefix("--no-").removeprefix("--").replace("-", "_")
        kinds = typing.get_args(_flag_types(options).get(name))
        if arg.startswith("--") and bool in kinds and type(None) in kinds:
            flag = f"--{name.replace('_', '-')}"
            spelled += [flag, str(not arg.startswith("--no-"))]
        else:
            spelled.append(arg)
    return spelled


def _flag_types(options: type[Any]) -> dict[str, Any]:
    """The type of every flag of a verb, by field name."""
    types: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(options).items():
        nested = isinstance(kind, type) and dataclasses.is_dataclass(kind)
        types.update(_flag_types(kind) if nested else {name: kind})
    return types


def _message_of(box: str) -> str:
    """The message of an error box of the command-line library, as one line.

    Parts are divided by rules; drawn with ASCII, the first part is the box's title.
    """
    parts: list[list[str]] = [[]]
    for line in box.splitlines():
        if re.search(r"─{5}|-{10}", line):
            parts.append([])
        elif text := line.strip("│| "):
            parts[-1].append(text)
    messages = [" ".join(part) for part in parts if part]
    message = (messages[1:] if "─" not in box else messages)[:1]
    text = message[0] if message else "the arguments cannot be understood"
    text = re.sub(
        r"invalid literal for int\(\) with base 10: (.*)", r"\1 is no whole number", text
    )
    text = re.sub(r"could not convert string to float: (.*)", r"\1 is no number", text)
    return text.removeprefix("Error parsing ")
