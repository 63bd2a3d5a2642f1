"""Room: layers of settings → one configuration that remembers who said what. No torch, no disk.

    default < preset < size < plan < file < flags

Where a run is resumed or begun from, that run (`base`) takes the place of the first three.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from myllm.config import SETTINGS, GPTConfig, RunConfig, field_types, flat_values, with_values
from myllm.errors import ConfigError
from myllm.registry import Registry

# The CPU size ends within 4 minutes on two cores. No dropout: it sees the text once or twice
# in that time, and PyTorch has no fused attention with dropout on CPUs.
SIZES: Registry[dict[str, Any]] = Registry("size", {
    "cpu": dict(
        d_model=160, n_layers=4, n_heads=4, context_length=128, vocab_size=0, dropout=0.0,
        batch_size=16, max_steps=600, warmup_steps=30,
    ),
    "gpu": dict(
        d_model=384, n_layers=6, n_heads=6, context_length=256, vocab_size=0, dropout=0.2,
        batch_size=64, max_steps=3000,
    ),
    "124m": dict(
        d_model=768, n_layers=12, n_heads=12, context_length=1024, vocab_size=50257, dropout=0.0,
        batch_size=16, accumulation_steps=8, max_steps=20_000, warmup_steps=500,
        learning_rate=1e-3,
    ),
})  # fmt: skip

# A preset is a layout that other programs know, and a recipe that trains it well.
_ADAMW = dict(optimizer="adamw", learning_rate=2e-3, schedule="cosine", min_learning_rate=0.1)
_ROTARY = dict(position="rotary", norm="rmsnorm", norm_eps=1e-6, feed_forward="swiglu", bias=False)
PRESETS: Registry[dict[str, Any]] = Registry("preset", {
    "gpt2": _ADAMW,  # Hugging Face's GPT2LMHeadModel
    "modern": dict(**_ROTARY, qk_norm=True),  # … Qwen3ForCausalLM
    "llama": dict(**_ROTARY, tie_weights=False),  # … LlamaForCausalLM
})  # fmt: skip

# A model that is trained already takes smaller steps than a new one.
FINE_TUNING: dict[str, Any] = {"learning_rate": 5e-4, "dropout": 0.0}
FINE_TUNING_SEQUENCE = 1024  # tokens: contexts of many thousands cost more than they teach

CHOSEN = ("file", "flags")  # layers in which a person named a value
GIVEN = ("run", "fine-tuning", *CHOSEN)  # layers whose values a plan leaves as they are


@dataclass(frozen=True)
class Resolved:
    """A configuration, and the layer that each of its values came from.

    Attributes:
        config: the settings.
        sources: setting → default, preset, size, run, fine-tuning, plan, file or flags.
    """

    config: RunConfig
    sources: dict[str, str]

    def over(self, layer: str, values: Mapping[str, Any]) -> Resolved:
        """With the values of one more layer on top.

        Raises:
            ConfigError: an unknown name, or a value of another type.
        """
        if "max_steps" in values and self.config.train.epochs is not None:
            values = {"epochs": None, **values}
        config = with_values(self.config, values)
        return Resolved(config, {**self.sources, **dict.fromkeys(values, layer)})

    def chosen(self, name: str) -> bool:
        """Whether a person named the value, by flag or in a file."""
        return self.sources[name] in CHOSEN


def resolve(
    *,
    preset: str = "modern",
    size: str = "cpu",
    plan: Mapping[str, Any] | None = None,
    file: Mapping[str, Any] | None = None,
    flags: Mapping[str, Any] | None = None,
    base: Resolved | None = None,
) -> Resolved:
    """The settings of all layers, put together.

    Args:
        preset: the one to take if neither file nor flags name one.
        size: likewise.
        plan: what was chosen to fit the run into a time.
        file: the settings of a TOML file.
        flags: those of the command line, or of a call.
        base: a run's settings (`resumed_from`, `begun_from`), in place of preset and size.

    Raises:
        ConfigError: an unknown name, preset or size, or a value of another type.

    >>> resolved = resolve(size="cpu", file={"d_model": 64}, flags={"max_steps": 5})
    >>> resolved.config.model.d_model, resolved.config.model.n_layers
    (64, 4)
    >>> [resolved.sources[name] for name in ("norm", "n_layers", "d_model", "max_steps", "seed")]
    ['preset', 'size', 'file', 'flags', 'default']
    """
    file, flags = file or {}, flags or {}
    for named in (file, flags):
        if named.get("epochs") is not None and named.get("max_steps") is not None:
            raise ConfigError(
                f"epochs {named['epochs']} and max_steps {named['max_steps']}: both say how long "
                "to train; give one of them"
            )
    if base is None:
        chosen = with_values(RunConfig(preset, size), {**file, **flags})
        base = _default(chosen.preset, chosen.size or size)
    return base.over("plan", plan or {}).over("file", file).over("flags", flags)


def default_config(preset: str = "modern", size: str = "cpu") -> RunConfig:
    """The configuration of a preset at a size, before any file or flag.

    Raises:
        ConfigError: for an unknown preset or size.
    """
    return _default(preset, size).config


def resumed_from(config: RunConfig) -> Resolved:
    """The base of a run that continues: all its settings."""
    return Resolved(config, dict.fromkeys(SETTINGS, "run"))


def begun_from(config: RunConfig) -> Resolved:
    """The base of a new run that begins with the model of another one."""
    values = flat_values(config)
    kept = {name: values[name] for name in (*field_types(GPTConfig), "tokenizer")}
    length = min(FINE_TUNING_SEQUENCE, config.model.context_length)
    begun = _default(config.preset, "cpu").over("run", kept).over("fine-tuning", FINE_TUNING)
    return begun.over("default", {"sequence_length": length})


def _default(preset: str, size: str) -> Resolved:
    plain = Resolved(RunConfig(), dict.fromkeys(SETTINGS, "default"))
    layered = plain.over("preset", PRESETS[preset]).over("size", SIZES[size])
    config = dataclasses.replace(layered.config, preset=preset, size=size)
    return Resolved(config, layered.sources)
