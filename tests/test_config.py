"""The knobs: precedence, TOML, limits."""

import dataclasses
import re
from pathlib import Path

import pytest
from cli_place import parsed, resolved

from myllm.config import (
    DataConfig,
    GPTConfig,
    RunConfig,
    SamplingConfig,
    TrainConfig,
    flat_values,
    from_toml,
    read_toml,
    to_toml,
    with_values,
)
from myllm.errors import ConfigError, InputError
from myllm.presets import (
    FINE_TUNING,
    PRESETS,
    SIZES,
    begun_from,
    default_config,
    resolve,
    resumed_from,
)


@pytest.fixture
def toml(tmp_path):
    """Writes a TOML file, gives its path."""

    def write(text):
        path = tmp_path / "settings.toml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


class TestPrecedence:
    def test_preset_over_default(self):
        """A preset sets what the dataclass leaves at its default."""
        rate = parsed("--preset", "gpt2").train.learning_rate
        assert rate == PRESETS["gpt2"]["learning_rate"] != TrainConfig().learning_rate

    def test_size_over_preset(self):
        """A size wins over default and preset: it knows what a model of that size bears."""
        assert parsed().model.d_model == SIZES["cpu"]["d_model"] != GPTConfig().d_model
        options = parsed("--preset", "gpt2", size="124m")
        assert options.train.learning_rate == SIZES["124m"]["learning_rate"]
        assert options.train.optimizer == "adamw"

    def test_toml_over_size(self, toml):
        """A TOML file wins over size and preset."""
        path = toml("[train]\nlearning_rate = 5e-4\n[model]\nd_model = 64\n")
        options = parsed("--preset", "gpt2", "--config", path, size="124m")
        assert (options.train.learning_rate, options.model.d_model) == (5e-4, 64)
        assert options.model.position == "learned"

    def test_flags_over_toml(self, toml):
        """A flag wins over all, wherever it stands."""
        path = toml("learning_rate = 5e-4\nd_model = 64\nmax_steps = 7\n")
        for args in (
            ("--config", path, "--learning-rate", "7e-4", "--d-model", "32"),
            ("--learning-rate", "7e-4", "--d-model=32", f"--config={path}"),
        ):
            options = parsed("--preset", "gpt2", *args)
            assert options.train.learning_rate == 7e-4
            assert options.model.d_model == 32
            assert options.train.max_steps == 7

    def test_preset_and_size_in_toml(self, toml):
        """A file can name preset and size; flags win over it."""
        path = toml('preset = "llama"\nsize = "gpu"\n')
        options = resolved("--config", path).config
        assert (options.preset, options.size) == ("llama", "gpu")
        assert options.model.d_model == SIZES["gpu"]["d_model"]
        assert options.model.tie_weights is False
        options = resolved("--config", path, "--preset", "gpt2").config
        assert (options.preset, options.model.position) == ("gpt2", "learned")

    def test_plan_between_size_and_file(self):
        """A plan wins over the size, a file over the plan."""
        plan = dict(d_model=96, n_layers=3, max_steps=70)
        config = resolve(plan=plan, file=dict(n_layers=2), flags=dict(max_steps=5)).config
        assert (config.model.d_model, config.model.n_layers, config.train.max_steps) == (96, 2, 5)

    def test_each_value_knows_its_layer(self):
        """Where several layers name a setting, it is the last one."""
        sources = resolve(
            preset="llama", plan=dict(d_model=96, n_heads=3), file=dict(n_heads=2, seed=4),
            flags=dict(seed=5),
        ).sources  # fmt: skip
        expected = dict(
            norm_eps="preset", tie_weights="preset", n_layers="size", d_model="plan",
            n_heads="file", seed="flags", schedule="default", preset="default",
        )  # fmt: skip
        assert {name: sources[name] for name in expected} == expected
        assert set(sources) == set(flat_values(RunConfig()))

    def test_a_run_takes_the_place_of_preset_and_size(self):
        """Resumed: all is the run's. Begun from it: the model and the tokenizer are."""
        saved = with_values(default_config("gpt2", "gpu"), dict(seed=9, tokenizer="char"))
        resumed = resolve(base=resumed_from(saved), flags=dict(max_steps=9))
        assert resumed.config == with_values(saved, dict(max_steps=9))
        assert set(resumed.sources.values()) == {"run", "flags"}
        begun = resolve(base=begun_from(saved), file=dict(batch_size=3))
        assert dataclasses.replace(begun.config.model, dropout=0.2) == saved.model
        assert begun.config.text.tokenizer == "char" and begun.config.train.seed == 1
        assert begun.config.train.learning_rate == FINE_TUNING["learning_rate"]
        names = ("d_model", "dropout", "batch_size", "max_steps", "seed")
        layers = ["run", "fine-tuning", "file", "size", "default"]
        assert [begun.sources[name] for name in names] == layers


class TestToml:
    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("size", SIZES)
    def test_round_trip(self, preset, size, tmp_path):
        """What is written is read back equal, for each preset at each size."""
        config = default_config(preset, size)
        path = tmp_path / "config.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        assert from_toml(path) == config

    def test_round_trip_of_unusual_values(self, tmp_path):
        """None over a default that is not, quotes, other scripts, lists, tiny numbers."""
        config = with_values(
            default_config("gpt2"),
            dict(paths=['a "b"\n.txt', "小说/", "c:\\d"], n_kv_heads=2, learning_rate=1.5e-7,
                 kernels="plain", device="cpu", patience=None, eval_interval=17),
        )  # fmt: skip
        path = tmp_path / "config.toml"
        path.write_text(to_toml(config), encoding="utf-8", newline="\n")
        assert from_toml(path) == config

    def test_sections_only_group(self, toml):
        """Flat and sectioned files mean the same."""
        assert read_toml(Path(toml("d_model = 8\nseed = 3"))) == {"d_model": 8, "seed": 3}
        sectioned = Path(toml("[model]\nd_model = 8\n[train]\nseed = 3"))
        assert read_toml(sectioned) == {"d_model": 8, "seed": 3}

    @pytest.mark.parametrize(
        "text, message",
        [
            ("d_modle = 8", r"'d_modle'.*did you mean d_model"),
            ("[train]\nlearning-rate = 1", r"'learning-rate'.*did you mean learning_rate"),
            ("n_embd = 8", r"'n_embd'.*did you mean d_model"),
            ('d_model = "8"', r"d_model '8': must be int"),
            ("d_model = 8.0", r"d_model 8\.0: must be int"),
            ("d_model = true", r"d_model True: must be int"),
            ("bias = 1", r"bias 1: must be bool"),
            ("dropout = false", r"dropout False: must be float"),
            ("dtype = 3", r"dtype 3: must be str"),
            ('paths = "a.txt"', r"paths 'a\.txt': must be a list of strings"),
            ("paths = [1]", r"paths \[1\]: must be a list of strings"),
            ("n_layers = 2021-01-01", r"n_layers .*: must be int"),
        ],
    )
    def test_bad_setting(self, toml, text, message):
        """An unknown name or a value of another type is a ConfigError that shows it."""
        with pytest.raises(ConfigError, match=message):
            parsed("--config", toml(text))

    def test_whole_number_for_a_real_one(self, toml):
        """1 is accepted where 1.0 is meant."""
        value = parsed("--config", toml("grad_clip = 1")).train.grad_clip
        assert value == 1.0 and isinstance(value, float)

    @pytest.mark.parametrize("text", ["d_model = ", "[model", "\x00"])
    def test_what_is_no_toml(self, toml, text):
        """A damaged file is named."""
        with pytest.raises(InputError, match="settings.toml is not valid TOML"):
            parsed("--config", toml(text))

    def test_what_is_no_text(self, tmp_path):
        """A binary file or a missing one is named."""
        (tmp_path / "b.toml").write_bytes(b"\xff\xfe")
        with pytest.raises(InputError, match="b.toml"):
            read_toml(tmp_path / "b.toml")
        with pytest.raises(InputError, match="none.toml"):
            read_toml(tmp_path / "none.toml")

    def test_values_that_cannot_work_are_found_on_reading(self, tmp_path):
        """A run's config.toml is checked like flags are."""
        path = tmp_path / "config.toml"
        path.write_text("[model]\nd_model = 30\nn_heads = 4\n")
        with pytest.raises(ConfigError, match="30"):
            from_toml(path)


NAN, INF = float("nan"), float("inf")
BAD = [
    ("d_model", 0, "1"), ("d_model", -8, "1"), ("d_model", 10**9, "65536"),
    ("n_layers", 0, "1"), ("n_layers", 5000, "1000"),
    ("n_heads", 0, "1"), ("n_kv_heads", 0, "1"), ("head_dim", -1, "1"), ("d_ff", 0, "1"),
    ("context_length", 0, "1"), ("context_length", 10**9, "1048576"),
    ("vocab_size", -1, "0"),
    ("dropout", 1.0, "255/256"), ("dropout", -0.1, "0"), ("dropout", NAN, "0"),
    ("norm_eps", 0.0, "1e-12"), ("norm_eps", 1e-40, "1e-12"),
    ("rope_theta", INF, "1.0"),
    ("position", "rotarry", "did you mean rotary"),
    ("norm", "rms", "rmsnorm"), ("feed_forward", "relu", "swiglu"),
    ("encoding", "klingon", "utf-8"),
    ("encoding_errors", "repalce", "did you mean replace"),
    ("batch_size", 0, "1"), ("accumulation_steps", 0, "1"), ("max_steps", 0, "1"),
    ("warmup_steps", -1, "0"), ("eval_interval", 0, "1"), ("patience", -1, "0"),
    ("keep", 0, "1"), ("profile", -1, "0"), ("seed", -1, "0"), ("seed", 2**32, "4294967295"),
    ("learning_rate", 0.0, "1e-12"), ("learning_rate", -1.0, "1e-12"),
    ("learning_rate", NAN, "10"), ("learning_rate", INF, "10"),
    ("learning_rate", 100.0, "10"),
    ("weight_decay", -0.1, "0.0"), ("weight_decay", 1e38, "100"), ("grad_clip", -1.0, "0.0"),
    ("grad_clip", NAN, "1e+30"), ("min_learning_rate", 1.5, "1.0"),
    ("dtype", "bfloat15", "did you mean bfloat16"),
]  # fmt: skip


class TestLimits:
    @pytest.mark.parametrize("name, value, limit", BAD)
    def test_bad_value(self, name, value, limit):
        """The error holds the name, the value and the limit or the choices."""
        config = dataclasses.replace(default_config())
        owner = next(p for p in ("model", "text", "train") if hasattr(getattr(config, p), name))
        part = dataclasses.replace(getattr(config, owner), **{name: value})
        with pytest.raises(ConfigError) as caught:
            dataclasses.replace(config, **{owner: part}).validate()
        message = str(caught.value)
        assert name in message and str(value) in message and limit in message
        assert "\n" not in message

    @pytest.mark.parametrize(
        "name, value",
        [
            ("max_new_tokens", -1), ("temperature", -0.5), ("temperature", NAN),
            ("temperature", 101.0), ("top_k", 0), ("top_p", 0.0), ("top_p", 1.5), ("min_p", 0.0),
            ("min_p", NAN), ("repetition_penalty", 0.0), ("repetition_penalty", -1.0),
            ("sample_seed", -1), ("temperature", 1e-40), ("repetition_penalty", 1e-40),
            ("top_p", 1e-40),
            ("max_new_tokens", 2.5), ("temperature", "hot"), ("top_k", True),
        ],
    )  # fmt: skip
    def test_bad_sampling(self, name, value):
        """Sampling settings have limits, too."""
        with pytest.raises(ConfigError, match=rf"{name}.*{re.escape(str(value))}"):
            SamplingConfig(**{name: value}).validate()

    @pytest.mark.parametrize(
        "shape, words",
        [
            (dict(d_model=100, n_heads=3), ["d_model 100", "n_heads 3", "--n-heads", "multiple"]),
            (dict(d_model=30, n_heads=2, position="rotary"), ["15", "odd", "learned"]),
            (dict(d_model=64, n_heads=4, n_kv_heads=3), ["n_heads 4", "n_kv_heads 3"]),
            (dict(d_model=64, n_heads=4, n_kv_heads=8), ["n_heads 4", "n_kv_heads 8"]),
        ],
    )
    def test_values_that_do_not_fit_together(self, shape, words):
        """The values, the limit and a remedy are in the message."""
        with pytest.raises(ConfigError) as caught:
            GPTConfig(**shape).validate()
        for word in words:
            assert word in str(caught.value)

    def test_the_proposed_head_count_works(self):
        """Doing what the message says helps."""
        with pytest.raises(ConfigError) as caught:
            GPTConfig(d_model=100, n_heads=3).validate()
        (heads,) = map(int, re.findall(r"--n-heads (\d+)", str(caught.value)))
        GPTConfig(d_model=100, n_heads=heads).validate()

    @pytest.mark.parametrize("preset", PRESETS)
    @pytest.mark.parametrize("size", SIZES)
    def test_presets_are_valid(self, preset, size):
        """Each preset at each size passes its own checks."""
        config = default_config(preset, size).validate()
        assert (config.preset, config.size) == (preset, size)

    def test_paths_and_data_exclude_each_other(self):
        """Both a path and a corpus are refused."""
        with pytest.raises(ConfigError, match="shakespeare"):
            DataConfig(("a.txt",), data="shakespeare").validate()

    def test_standard_input_once(self):
        """- can be given once only."""
        with pytest.raises(ConfigError, match="more than once"):
            DataConfig(("-", "-")).validate()

    @pytest.mark.parametrize("kind, name", [("preset", "gpt3"), ("size", "cpuu")])
    def test_unknown_preset_and_size(self, kind, name):
        """The nearest name is proposed."""
        with pytest.raises(ConfigError, match=f"unknown {kind} '{name}': did you mean"):
            default_config(**{kind: name})

    def test_flat_values_has_every_field(self):
        """flat_values and with_values are inverse."""
        config = default_config("llama", "gpu")
        values = flat_values(config)
        assert with_values(RunConfig(), values) == config
        n_fields = sum(len(dataclasses.fields(c)) for c in (GPTConfig, DataConfig, TrainConfig))
        assert len(values) == n_fields + 3  # preset, size, from_run
