"""What makes a model faster: when it is used, and that it computes the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from threading import Thread

import pytest
import torch

from myllm.config import GPTConfig, with_values
from myllm.data.dataset import Batch
from myllm.errors import ConfigError
from myllm.kernels.plain import Kernels
from myllm.kinds import KERNELS, Kinds
from myllm.model import GPTModel
from myllm.model.dropout import Dropout
from myllm.presets import default_config
from myllm.system.device import choose_attention
from myllm.train import kernels
from myllm.train.kernels import checked_device, fastest_kernels, use_kernels

CPU, MPS = torch.device("cpu"), torch.device("mps")
TOKENS = torch.arange(32).view(2, 16)
BATCH = Batch(TOKENS, TOKENS, torch.ones_like(TOKENS, dtype=torch.bool))


def test_the_kind_of_attention_follows_the_device():
    assert choose_attention(CPU) == "manual"
    assert choose_attention(torch.device("cuda")) == "flash"


class TestCheckedDevice:
    """Played on the CPU: the model that is moved computes right, or wrong."""

    @pytest.fixture
    def moved(self, monkeypatch, small_model):
        """Keeps moved models and tokens where they are; may spoil the model."""

        def prepare(spoilt: bool) -> None:
            class Elsewhere(type(small_model)):  # type: ignore[misc]
                def to(self, device):
                    if spoilt:
                        with torch.no_grad():
                            self.ln_final.weight.mul_(3)
                    return self

            monkeypatch.setattr(kernels.copy, "deepcopy", lambda model: model)
            monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **kwargs: self)
            small_model.__class__ = Elsewhere

        return prepare

    def test_other_devices_are_not_checked(self, small_model):
        assert checked_device(small_model, BATCH, CPU, chosen=True) == CPU

    def test_one_that_agrees_is_taken(self, small_model, moved):
        moved(spoilt=False)
        assert checked_device(small_model, BATCH, MPS, chosen=False) == MPS

    def test_one_that_differs_is_announced_and_not_taken(self, small_model, moved, caplog):
        moved(spoilt=True)
        assert checked_device(small_model, BATCH, MPS, chosen=False) == CPU
        assert "training on the CPU, not on mps" in caplog.text

    def test_one_that_differs_and_was_chosen_is_refused(self, small_model, moved):
        moved(spoilt=True)
        with pytest.raises(ConfigError, match="device mps: .* take --device cpu"):
            checked_device(small_model, BATCH, MPS, chosen=True)


class TestChoice:
    """Which kernels compute a run, and what happens where they cannot."""

    def use(self, name: str, model) -> Kernels:
        return use_kernels(name, model.train(), BATCH, torch.float32, nullcontext())

    def test_plain_ones_change_nothing(self, small_model):
        before = [type(module) for module in small_model.modules()]
        assert type(self.use("plain", small_model)) is Kernels
        assert before == [type(module) for module in small_model.modules()]

    def test_those_that_compute_something_else_are_not_used(
        self, small_model, monkeypatch, caplog
    ):
        class Wrong(Kernels):
            def attach(self, model, dtype):
                model.ln_final.forward = lambda x: 2 * x

            def detach(self, model):
                del model.ln_final.forward

        monkeypatch.setitem(KERNELS, "wrong", Wrong)
        assert type(self.use("wrong", small_model)) is Kernels
        assert "not computed by wrong kernels, but by plain ones" in caplog.text
        assert "differ by" in caplog.text
        assert "forward" not in vars(small_model.ln_final)

    @pytest.mark.parametrize("when", ["attach", "the first step"])
    def test_those_that_fail_are_not_used(self, small_model, monkeypatch, caplog, when):
        class Failing(Kernels):
            def attach(self, model, dtype):
                if when == "attach":
                    raise OSError("no compiler\nand more lines")
                model.ln_final.forward = self.fail

            def detach(self, model):
                vars(model.ln_final).pop("forward", None)

            def fail(self, x):
                raise RuntimeError("no compiler")

        monkeypatch.setitem(KERNELS, "failing", Failing)
        assert type(self.use("failing", small_model)) is Kernels
        assert "slower: " in caplog.text and "(no compiler)" in caplog.text
        assert "forward" not in vars(small_model.ln_final)

    def test_without_its_library_it_trains_all_the_same(self, small_model, monkeypatch, caplog):
        missing: Kinds[type[Kernels]] = Kinds(
            "kernels", {"numba": ("a_library_that_is_missing:Kernels", "")}
        )
        monkeypatch.setattr("myllm.train.kernels.KERNELS", missing)
        assert type(self.use("numba", small_model)) is Kernels
        assert "No module named 'a_library_that_is_missing'" in caplog.text

    @pytest.mark.parametrize("flops", [1e9, 1e13])
    def test_where_numba_is_not_installed_others_are_chosen(
        self, small_model, monkeypatch, caplog, flops
    ):
        """As after the README's installation: nothing of it is imported, whatever the run."""
        for name in ("fused", "loops", "numbers"):
            monkeypatch.delitem(sys.modules, f"myllm.kernels.{name}", raising=False)
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.setattr("myllm.train.kernels.find_spec", lambda name: None)
        caplog.set_level("INFO")
        args = small_model.train(), BATCH, torch.float32, nullcontext()
        assert fastest_kernels(*args, flops=flops) == "plain"
        assert ("pip install numba" in caplog.text) == (flops > 1e12)

    def test_a_name_that_is_not_there_is_an_error(self, small_model):
        with pytest.raises(ConfigError, match="unknown kernels 'fast': choices: .*plain"):
            self.use("fast", small_model)

    def test_not_for_every_precision(self, small_model, caplog):
        use_kernels("numba", small_model.train(), BATCH, torch.float16, nullcontext())
        assert "not for torch.float16 on cpu" in caplog.text

    def test_dropout_is_left_out_of_the_comparison_where_it_draws_otherwise(self, monkeypatch):
        pytest.importorskip("numba")
        config = GPTConfig(vocab_size=32, context_length=16, d_model=16, n_layers=1, n_heads=2)
        model = GPTModel(replace(config, dropout=0.5))
        assert type(self.use("numba", model)) is not Kernels
        assert {m.rate for m in model.modules() if isinstance(m, Dropout)} == {0.5}

    def test_a_short_run_is_not_measured(self, small_model, monkeypatch):
        monkeypatch.setattr("myllm.train.kernels._seconds", lambda *args: pytest.fail("measured"))
        args = small_model.train(), BATCH, torch.float32, nullcontext()
        assert fastest_kernels(*args, flops=1e9) == "plain"

    @pytest.mark.parametrize("seconds, fastest", [((1.0, 0.5), "other"), ((1.0, 0.99), "plain")])
    def test_the_fastest_is_chosen(self, small_model, monkeypatch, seconds, fastest):
        class Other(Kernels):
            worth_flops = {"cpu": 1e12}

        table = {"plain": Kernels, "other": Other}
        monkeypatch.setattr("myllm.train.kernels.KERNELS", table)
        found = iter(seconds)
        monkeypatch.setattr("myllm.train.kernels._seconds", lambda *args: next(found))
        args = small_model.train(), BATCH, torch.float32, nullcontext()
        assert fastest_kernels(*args, flops=1e13) == fastest


class TestMaking:
    """Kernels are made ahead for runs that are likely to want them."""

    @pytest.mark.parametrize(
        "train, made",
        [
            (dict(max_steps=600), ["other"]),
            (dict(max_steps=2), []),
            (dict(minutes=3), ["other"]),
            (dict(minutes=0.1), []),
            (dict(max_steps=600, kernels="plain"), []),
            (dict(max_steps=2, kernels="other"), ["other"]),
        ],
    )
    def test_for_whom(self, monkeypatch, train, made):
        found: list[str] = []

        class Other(Kernels):
            worth_flops = {"cpu": 4e12}

            def make(self, dtype):
                found.append("other")

        table = {"plain": Kernels, "other": Other}
        monkeypatch.setattr("myllm.train.kernels.KERNELS", table)
        done = Thread(target=int)
        done.start()
        monkeypatch.setattr("myllm.train.kernels.begin_to_compile", lambda: done)
        config = with_values(default_config("modern"), dict(device="cpu", **train))
        with kernels.making_kernels(config):
            pass
        assert found == made


class TestNumbaIsOptional:
    """Runs of the program in processes of their own: this one has imported Numba long ago."""

    @pytest.fixture
    def run(self, tmp_path) -> Callable[..., str]:
        (tmp_path / "text.txt").write_text("abc def ghi\n" * 400, encoding="utf-8")

        def run(before: str, *words: str) -> str:
            script = (
                f"import sys; {before}\nfrom myllm.__main__ import main\n"
                "try: assert not main()\n"
                "finally: print('numba' in sys.modules, file=sys.stderr)"
            )
            own = {"PYTHONPATH": os.pathsep.join(sys.path)}
            done = subprocess.run(
                [sys.executable, "-c", script, *words],
                cwd=tmp_path, env={**os.environ, **own}, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        return run

    TRAIN = "train text.txt --max-steps 3 --d-model 16 --n-layers 1 --n-heads 2 --run small"

    def test_where_there_is_none(self, run):
        missing = "sys.modules.update({'numba': None, 'llvmlite': None})"
        words = [*self.TRAIN.split(), "--context-length", "16", "--kernels", "numba"]
        said = run(missing, *words)
        assert "not computed by numba kernels, but by plain ones" in said
        assert run(missing, "generate", "abc", "--max-new-tokens", "5").startswith("abc")

    def test_it_only_translates(self, run):
        """In another process, once: importing it takes longer than writing a text."""
        pytest.importorskip("numba")
        words = [*self.TRAIN.split(), "--context-length", "16", "--kernels", "numba"]
        said = run("pass", *words)
        assert "not computed by" not in said and said.endswith("False\n")
