"""Room: every knob, its default and its comment → checked dataclasses. Imports no torch.

A knob is one field of one dataclass here, with a comment that is its help text. The command
line, `--help`, the TOML file and the run folder all read these dataclasses; nothing lists the
fields a second time. Field names are unique over the dataclasses, so that flags can be flat.
Which value wins where several are given is said in `presets.resolve`.
"""

from __future__ import annotations

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from myllm.checks import Limits, check_ranges, check_text
from myllm.errors import ConfigError, InputError
from myllm.kinds import FEED_FORWARDS, NORMS
from myllm.reading import Reading
from myllm.registry import check_choice, unknown

# What is a class or function of its own (tokenizers, schedules …) has its table in `kinds`.
POSITIONS = ("learned", "rotary")
DTYPE_NAMES = ("bfloat16", "float16", "float32")
VAL_SPLITS = ("spread", "end")
ON_NONFINITE = ("stop", "rollback")
ON_DISK_FULL = ("stop", "wait")
MODEL_LIMITS: Limits = {
    "vocab_size": (0, 10**7), "context_length": (1, 2**20), "d_model": (1, 2**16),
    "n_layers": (1, 1_000), "n_heads": (1, 2**12), "n_kv_heads": (1, 2**12),
    "head_dim": (1, 2**12), "d_ff": (1, 2**20), "norm_eps": (1e-12, 1.0),
    "rope_theta": (1.0, 1e12), "rope_factor": (0.01, 1e5), "rope_low_freq_factor": (0.001, 1e6),
    "rope_high_freq_factor": (0.001, 1e6), "rope_original_context": (1, 2**20),
}  # fmt: skip
TRAIN_LIMITS: Limits = {
    "minutes": (1e-6, 1e6), "epochs": (1e-6, 1e6), "threads": (1, 1024),
    "batch_size": (1, 10**6), "accumulation_steps": (1, 10**6),
    "max_steps": (1, 10**9), "learning_rate": (1e-12, 10.0), "weight_decay": (0.0, 100.0),
    "warmup_steps": (0, 10**9), "min_learning_rate": (0.0, 1.0), "grad_clip": (0.0, 1e30),
    "eval_interval": (1, 10**9), "patience": (0, 10**9), "keep": (1, 10**6), "profile": (0, 1_000),
    "sequence_length": (1, 2**20),
    "seed": (0, 2**32 - 1),  # that and the step are the two halves of what dropout draws from
}  # fmt: skip
SAMPLING_LIMITS: Limits = {
    "max_new_tokens": (0, 10**8), "temperature": (0.0, 100.0), "top_k": (1, 10**7),
    "top_p": (1e-6, 1.0), "min_p": (1e-6, 1.0), "repetition_penalty": (0.01, 100.0),
    "sample_seed": (0, 2**63 - 1),
}  # fmt: skip
LEAST_TEMPERATURE = 1e-6  # besides 0: what logits are divided by, and must not overflow
FROM = {"flag": "from"}  # the flag of a field that cannot have a keyword of Python as its name


def positional(default: Any) -> Any:
    """A field that the command line takes without a flag, by its place."""
    return field(default=default, metadata={"positional": True})


def typed(default: Any) -> Any:
    """A text that may hold line ends, which a command line writes as \\n (see `unescaped`)."""
    return field(default=default, metadata={"typed": True})


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a `GPTModel`. The defaults are GPT-2 small (124 M parameters)."""

    vocab_size: int = 50257  # tokens in the vocabulary (0: chosen from the length of the text)
    context_length: int = 1024  # tokens the model looks back over (with --from: it is trained on)
    d_model: int = 768  # width of the residual stream
    n_layers: int = 12  # number of transformer blocks
    n_heads: int = 12  # attention heads; must divide d_model unless head_dim is given
    n_kv_heads: int | None = None  # key and value heads, fewer than n_heads is GQA (None: n_heads)
    head_dim: int | None = None  # width of one head (None: d_model / n_heads)
    d_ff: int | None = None  # inner width of the feed-forward (None: 4 d_model; swiglu: 8/3)
    dropout: float = 0.1  # share of activations dropped while training (in steps of 1/256)
    bias: bool = True  # biases in the linear layers and in LayerNorm
    position: str = "learned"  # how positions enter the model
    norm: str = "layernorm"  # how activations are normalised
    norm_eps: float = 1e-5  # added to the variance inside a norm
    feed_forward: str = "gelu"  # what follows attention in a block
    qk_norm: bool = False  # normalise queries and keys per head before attention
    rope_theta: float = 10000.0  # base of the rotary wavelengths
    rope_factor: float = 1.0  # slows rotary positions for longer contexts, as Llama 3.1 (1: off)
    rope_low_freq_factor: float = 1.0  # … fully, what turns less often in the original context
    rope_high_freq_factor: float = 4.0  # … not at all, what turns more often in it
    rope_original_context: int = 8192  # … the context length that was trained first
    tie_weights: bool = True  # the output head shares the token embedding's weights
    attention: str | None = None  # how attention is computed (None: the faster of the two)

    def validate(self) -> GPTConfig:
        """Checks every value and how they fit together; returns itself.

        Raises:
            ConfigError: with the value, the limit and the remedy.
        """
        check_ranges(self, MODEL_LIMITS)
        if self.dropout != 0 and not 1 / 256 <= self.dropout <= 255 / 256:
            raise ConfigError(
                f"dropout {self.dropout}: must be 0, or between 1/256 (0.0039) and 255/256 "
                "(0.9961); 0.1 is usual"
            )
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        if not low < high:
            raise ConfigError(
                f"rope_low_freq_factor {low} and rope_high_freq_factor {high}: the first must be "
                "below the second"
            )
        check_choice("position", self.position, POSITIONS)
        check_choice("norm", self.norm, NORMS)
        check_choice("feed_forward", self.feed_forward, FEED_FORWARDS)
        if self.head_dim is None and self.d_model % self.n_heads:
            fits = [n for n in range(1, self.d_model + 1) if self.d_model % n == 0]
            remedy = min(fits, key=lambda n: abs(n - self.n_heads))
            raise ConfigError(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}: "
                f"take --n-heads {remedy}, or a d_model that is a multiple of {self.n_heads}"
            )
        if self.n_heads % self.kv_heads:
            raise ConfigError(
                f"n_heads {self.n_heads} is not divisible by n_kv_heads {self.kv_heads}: "
                "every key and value head serves the same number of query heads"
            )
        if self.position == "rotary" and self.head_size % 2:
            raise ConfigError(
                f"head size {self.head_size} (d_model {self.d_model} / n_heads {self.n_heads}) is "
                "odd, and rotary positions turn pairs: take an even head size or --position "
                "learned"
            )
        return self

    @property
    def kv_heads(self) -> int:
        """K, the number of key and value heads."""
        return self.n_heads if self.n_kv_heads is None else self.n_kv_heads

    @property
    def head_size(self) -> int:
        """D, the width of one head."""
        return self.d_model // self.n_heads if self.head_dim is None else self.head_dim

    @property
    def dropout_rate(self) -> float:
        """The share that is really dropped: `dropout` to the nearest 1/256."""
        return round(self.dropout * 256) / 256

    @property
    def ff_size(self) -> int:
        """F, the inner width of the feed-forward; SwiGLU's is the nearest 8 to 8/3 d_model."""
        if self.d_ff is not None:
            return self.d_ff
        if self.feed_forward == "swiglu":
            return max(8, round(self.d_model * 8 / 3 / 8) * 8)
        return 4 * self.d_model


@dataclass(frozen=True)
class DataConfig(Reading):
    """Where the text comes from and how it becomes tokens."""

    paths: tuple[str, ...] = positional(())  # files, folders, or - for standard input
    data: str | None = None  # a corpus to download instead of paths
    tokenizer: str = "bpe"  # how text becomes tokens
    val_split: str = "spread"  # which tenth is held out: spread (ten pieces), end (the last)
    data_dir: str = "data"  # folder for token files and downloads; safe to delete

    def validate(self) -> DataConfig:
        """Raises `ConfigError` for a value that cannot work; returns itself."""
        self.validate_reading()
        check_choice("val_split", self.val_split, VAL_SPLITS)
        if self.paths and self.data:
            raise ConfigError(f"both paths and --data {self.data} are given: choose one")
        if self.paths.count("-") > 1:
            raise ConfigError("standard input (-) is given more than once")
        return self


@dataclass(frozen=True)
class TrainConfig:
    """How the model is trained."""

    minutes: float | None = None  # time for the run: chooses shape, batch and steps to fit it
    batch_size: int = 16  # sequences in one forward pass
    sequence_length: int | None = None  # tokens of a training sequence (None: the model's context)
    accumulation_steps: int = 1  # forward passes whose gradients make one step
    max_steps: int = 1000  # optimizer steps in all
    epochs: float | None = None  # times through the training text (None: as max_steps says)
    optimizer: str = "muon"  # what turns gradients into updates
    learning_rate: float = 3e-3  # peak learning rate
    weight_decay: float = 0.1  # decoupled weight decay of the matrices
    schedule: str = "wsd"  # the learning rate over the run, after its rise
    warmup_steps: int = 50  # steps of rising learning rate (at most a fifth of the run)
    min_learning_rate: float = 0.0  # where a decaying schedule ends, as a share of the peak
    grad_clip: float = 1.0  # the largest norm of a step's gradient (0: off)
    eval_interval: int | None = None  # steps between evaluations (None: ten in the run)
    patience: int | None = None  # stop after this many evaluations without a gain (0: never)
    keep: int = 2  # checkpoints kept besides the best one, never fewer than two
    on_nonfinite: str = "stop"  # a loss of NaN or infinity: stop, rollback (and skip the batch)
    on_disk_full: str = "stop"  # no room for a checkpoint: stop, wait (until there is)
    dtype: str | None = None  # of products while training (None: what is fastest here)
    kernels: str | None = None  # what computes the model (None: what is fastest here)
    activation_checkpointing: bool = False  # far less memory, a third more time
    device: str | None = None  # cpu, cuda, cuda:1, mps (None: the best one here)
    threads: int | None = None  # of the CPU (None: as many as are fastest here and now)
    seed: int = 1  # all randomness follows from it
    tensorboard: bool = False  # also write TensorBoard events into the run folder
    profile: int = 0  # profile so many steps: a table, and a Chrome trace in the run folder
    detect_anomaly: bool = False  # find the operation that makes a NaN gradient (slow)

    def validate(self) -> TrainConfig:
        """Raises `ConfigError` for a value that cannot work; returns itself."""
        check_ranges(self, TRAIN_LIMITS)
        if (n := self.batch_size * self.accumulation_steps) > 10**6:
            raise ConfigError(
                f"batch_size {self.batch_size} and accumulation_steps {self.accumulation_steps}: "
                f"a step would have {n} sequences, the limit is 1000000"
            )
        check_choice("on_nonfinite", self.on_nonfinite, ON_NONFINITE)
        check_choice("on_disk_full", self.on_disk_full, ON_DISK_FULL)
        if self.dtype is not None:
            check_choice("dtype", self.dtype, DTYPE_NAMES)
        return self

    @property
    def evaluation_steps(self) -> int:
        """Steps between two evaluations."""
        return self.eval_interval or max(1, self.max_steps // 10)


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is chosen."""

    max_new_tokens: int = 200  # stop after so many tokens
    temperature: float = 0.8  # 0: always the likeliest token; 1: the model's own distribution
    top_k: int | None = None  # choose among the k likeliest tokens only
    top_p: float | None = 0.95  # choose among the likeliest tokens that sum to this probability
    min_p: float | None = None  # drop tokens below this share of the likeliest one's probability
    repetition_penalty: float = 1.0  # above 1: what stands in the context becomes less likely
    stop: tuple[str, ...] = typed(())  # end at this string, which is not shown (\n: a line end)
    ignore_end: bool = False  # continue past the end-of-text token
    sample_seed: int | None = None  # the same seed gives the same text (None: a new one each time)

    def validate(self) -> SamplingConfig:
        """Raises `ConfigError` for a value that cannot work; returns itself."""
        check_ranges(self, SAMPLING_LIMITS)
        if 0 < self.temperature < LEAST_TEMPERATURE:
            raise ConfigError(
                f"temperature {self.temperature}: must be 0 (always the likeliest token), or "
                f"between {LEAST_TEMPERATURE} and 100"
            )
        if "" in self.stop:
            raise ConfigError("stop '': an empty stop string would end every text at once")
        return self


@dataclass(frozen=True)
class RunConfig:
    """All that determines a training run; kept in its folder as `config.toml`."""

    preset: str = "modern"  # layout of the model, and the recipe that trains it
    size: str | None = None  # how large it is (None: what this machine trains in minutes)
    from_run: str | None = field(default=None, metadata=FROM)  # begin with this run's model
    model: GPTConfig = field(default_factory=GPTConfig)
    text: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def validate(self) -> RunConfig:
        """Raises `ConfigError` for a value that cannot work; returns itself."""
        self.model.validate()
        self.text.validate()
        self.train.validate()
        return self


# The dataclasses of a run's settings by section; "" holds what stands above the first section.
SECTIONS: dict[str, type[Any]] = {
    "": RunConfig,
    **{
        f.name: typing.cast(type[Any], f.default_factory)
        for f in dataclasses.fields(RunConfig)
        if dataclasses.is_dataclass(f.default_factory)
    },
}


def field_types(section: type[Any]) -> dict[str, Any]:
    """The scalar fields of one dataclass and their types; those that are sections are left out."""
    hints = typing.get_type_hints(section)
    return {n: kind for n, kind in hints.items() if not dataclasses.is_dataclass(kind)}


# setting → its section and its type
SETTINGS: dict[str, tuple[str, Any]] = {
    name: (section, kind)
    for section, owner in SECTIONS.items()
    for name, kind in field_types(owner).items()
}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """A copy of `config` with flat `values` put into the fields of those names.

    >>> with_values(RunConfig(), {"d_model": 64, "max_steps": 5}).model.d_model
    64

    Raises:
        ConfigError: for an unknown name (with the nearest), or a value of another type.
    """
    sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
    for name, value in values.items():
        if name not in SETTINGS:
            raise unknown("setting", name, SETTINGS)
        section, kind = SETTINGS[name]
        sections[section][name] = _converted(name, value, kind)
    top = sections.pop("")
    for section, changes in sections.items():
        top[section] = dataclasses.replace(getattr(config, section), **changes)
    return dataclasses.replace(config, **top)


def flat_values(config: RunConfig) -> dict[str, Any]:
    """All settings of `config` by name, without their sections."""
    return {
        name: getattr(getattr(config, section) if section else config, name)
        for name, (section, _) in SETTINGS.items()
    }


def read_toml(path: Path) -> dict[str, Any]:
    """The settings of a TOML file, flat; sections only group them.

    Raises:
        InputError: no such file, or no valid TOML.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Windows puts marks there
    except OSError as error:
        raise InputError(f"cannot read configuration {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    for name, value in document.items():
        values |= value if isinstance(value, dict) else {name: value}
    return values


def to_toml(config: RunConfig) -> str:
    """`config` as TOML, one section per dataclass. TOML has no null: None is left out."""
    import tomli_w

    document: dict[str, Any] = {}
    for name, value in flat_values(config).items():
        section, _ = SETTINGS[name]
        if value is not None:
            home = document.setdefault(section, {}) if section else document
            home[name] = list(value) if isinstance(value, tuple) else value
    return tomli_w.dumps(document)


def from_toml(path: Path) -> RunConfig:
    """The configuration of a run folder's `config.toml`; what it leaves out is None or default.

    Raises:
        InputError, ConfigError: the file cannot be read or its values cannot work.
    """
    nones = {n: None for n, (_, kind) in SETTINGS.items() if type(None) in typing.get_args(kind)}
    values = read_toml(path)
    if "compile" in values:  # as it was called before there were other kernels
        values["kernels"] = "compiled" if values.pop("compile") else "plain"
    return with_values(RunConfig(), {**nones, **values}).validate()


def _converted(name: str, value: Any, kind: Any) -> Any:
    """`value` as `kind`, for what TOML can hold; no silent narrowing."""
    allowed = typing.get_args(kind) or (kind,)
    if typing.get_origin(kind) is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            for text in value:
                check_text(name, text)
            return tuple(value)
        raise ConfigError(f"{name} {value!r}: must be a list of strings")
    if float in allowed and type(value) is int and abs(value) < 2**1023:
        return float(value)
    if type(value) in allowed:
        if isinstance(value, str):
            check_text(name, value)
        return value
    names = " or ".join("None" if k is type(None) else k.__name__ for k in allowed)
    raise ConfigError(f"{name} {value!r}: must be {names}")
