"""Kernels of decoding on CPUs: they compute what the model computes, and it is missed nowhere."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from myllm.config import GPTConfig, SamplingConfig
from myllm.generate import decode
from myllm.generate.decode import decode_one_token, prefill
from myllm.generate.generator import TextGenerator
from myllm.kernels import decode_cpu, object_code
from myllm.kernels.decode_cpu import decoder_of
from myllm.kernels.stand_ins import NumbaKernels
from myllm.model import FlashAttention, GPTModel, KVCache
from myllm.system.places import kept_folder
from myllm.tokenizer import BPETokenizer

pytest.importorskip("numba")

MODULE, GROUP = "myllm.kernels.decode_stages", "FUNCTIONS"


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def model_of(config: GPTConfig, seed: int = 1) -> GPTModel:
    """Random weights, large enough that every token counts."""
    torch.manual_seed(seed)
    model = GPTModel(config).eval()
    for p in model.parameters():
        p.add_(0.2 * torch.randn_like(p))
    return model


def random_config(rng: random.Random) -> GPTConfig:
    """Odd sizes, groups of heads, every standard layer."""
    choose = rng.choice
    n_kv_heads, position = choose([1, 1, 2, 3]), choose(["learned", "rotary"])
    return GPTConfig(
        vocab_size=choose([1, 5, 31, 32, 33, 65, 100]), context_length=choose([1, 2, 5, 16, 33]),
        d_model=choose([7, 8, 17, 32, 40, 64]), n_layers=choose([1, 2, 3]),
        n_heads=n_kv_heads * choose([1, 2, 3]), n_kv_heads=n_kv_heads,
        head_dim=choose([2, 4, 6, 8, 10, 16, 24, 32, 34, 40]) + (position == "learned"),
        d_ff=choose([None, 1, 7, 32, 50]), bias=choose([True, False]), position=position,
        norm=choose(["layernorm", "rmsnorm"]), norm_eps=choose([1e-5, 1e-6]),
        feed_forward=choose(["gelu", "swiglu"]), qk_norm=choose([True, False]),
        tie_weights=choose([True, False]), attention=choose(["flash", "manual"]),
    )  # fmt: skip


def plain(model: GPTModel, tokens: Tensor, cache: KVCache, counts=None) -> Tensor:
    """`prefill` by the model as it is written."""
    features = model.features(tokens, cache, counts)
    ends = torch.tensor(counts or [tokens.shape[1]] * len(tokens)) - 1
    return model.lm_head(features[torch.arange(len(tokens)), ends])


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max())))


def check_shape(seed: int) -> None:
    """Texts of one random model up to the edge of its context: padded, cut, leaving, joining."""
    rng = random.Random(seed)
    config = random_config(rng)
    model = model_of(config, seed)
    mine, other, B = KVCache(config), KVCache(config), rng.choice([1, 2, 5, 9])
    while room := config.context_length - max(mine.lengths or [0]):
        T = rng.randint(1, min(room, 9)) if rng.random() < 0.7 else room
        counts = [rng.randint(1, T) for _ in range(B)] if rng.random() < 0.5 else None
        tokens = torch.randint(config.vocab_size, (B, T))
        decoder = decoder_of(model, mine)
        assert decoder is not None
        found, expected = decoder(tokens, mine, counts), plain(model, tokens, other, counts)
        assert close(found, expected), config
        assert mine.lengths == other.lengths
        if rng.random() < 0.2:
            rows = [rng.randrange(B) for _ in range(rng.randint(1, 5))]
            lengths = [rng.randint(0, mine.lengths[row]) for row in rows]
            for cache in (mine, other):
                cache.keep(rows)
                cache.trim(lengths)
            B = len(rows)
        if rng.random() < 0.2:
            tokens, late, too = tokens[:1, :1], KVCache(config), KVCache(config)
            assert close(decoder(tokens, late), plain(model, tokens, too))
            mine.join(late)
            other.join(too)
            B += 1


SMALL = GPTConfig(
    vocab_size=70, context_length=32, d_model=48, n_layers=2, n_heads=4, n_kv_heads=2,
    position="rotary", norm="rmsnorm", feed_forward="swiglu", bias=False, qk_norm=True,
)  # fmt: skip


class TestEqualsPlain:
    @pytest.mark.parametrize("part", range(4))
    def test_random_shapes(self, part):
        for seed in range(part * 8, part * 8 + 8):
            check_shape(seed)

    @pytest.mark.slow
    @pytest.mark.parametrize("part", range(10))
    def test_many_random_shapes(self, part):
        for seed in range(1000 + part * 50, 1050 + part * 50):
            check_shape(seed)

    def test_through_prefill_and_decode(self):
        model, tokens = model_of(SMALL), torch.randint(70, (3, 8))
        mine, other = KVCache(SMALL), KVCache(SMALL)
        assert close(prefill(model, tokens, mine), plain(model, tokens, other))
        ids = tokens[:, 0]
        assert close(decode_one_token(model, ids, mine), plain(model, ids[:, None], other))

    def test_weights_change_within_a_text(self):
        model, tokens = model_of(SMALL), torch.randint(70, (1, 5))
        mine, other = KVCache(SMALL), KVCache(SMALL)
        prefill(model, tokens, mine)
        plain(model, tokens, other)
        model.lm_head.weight.mul_(2)
        assert close(prefill(model, tokens, mine), plain(model, tokens, other))

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_weights_that_are_stored_in_half(self, dtype):
        """The numbers that are stored, computed in float32."""
        stored, tokens = model_of(SMALL).to(dtype), torch.randint(70, (2, 9))
        found = prefill(stored, tokens, KVCache(SMALL))
        assert found.dtype == torch.float32
        assert close(found, plain(stored.float(), tokens, KVCache(SMALL)))

    def test_the_same_text(self, monkeypatch):
        """Greedy, far past the context, as without kernels."""
        tokenizer = BPETokenizer(300).train("the quick brown fox, naïve Straße 你好.\n" * 30)
        config = dataclasses.replace(SMALL, vocab_size=tokenizer.vocab_size)
        generator = TextGenerator(model_of(config), tokenizer)
        sampling = SamplingConfig(100, temperature=0, ignore_end=True)
        text = generator.generate("the", sampling)
        assert "".join(generator.stream("the", sampling)) == text
        monkeypatch.setattr(decode, "decoder_of", lambda model, cache: None)
        assert generator.generate("the", sampling) == text


class TestBits:
    """What the model as it is written cannot promise."""

    @pytest.fixture(params=[1, 2])
    def threads(self, request, monkeypatch):
        monkeypatch.setattr(decode_cpu, "LEAST_SHARED", 0)
        torch.set_num_threads(request.param)

    def test_neighbours_and_steps_change_nothing(self, threads):
        """Law 8: alone or beside others; law 2: read at once or one by one."""
        model, tokens = model_of(SMALL), torch.randint(70, (13, 20))
        at_once = prefill(model, tokens, KVCache(SMALL))
        alone = torch.cat([prefill(model, row[None], KVCache(SMALL)) for row in tokens])
        cache = KVCache(SMALL)
        steps = [decode_one_token(model, ids, cache) for ids in tokens.T]
        assert torch.equal(at_once, alone) and torch.equal(steps[-1], at_once)

    def test_threads_change_nothing(self, monkeypatch):
        monkeypatch.setattr(decode_cpu, "LEAST_SHARED", 0)
        tokens, found = torch.randint(70, (5, 1)), []
        for n in (1, 2, 4):
            torch.set_num_threads(n)
            model, cache = model_of(SMALL), KVCache(SMALL)
            found.append(torch.stack([prefill(model, tokens, cache) for _ in range(30)]))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


class TestChangedWeights:
    """A copy of weights that were changed since is never used."""

    def in_place(self, model):
        model.blocks[1].feed_forward.gate.weight.mul_(1.5)

    def trained(self, model):
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        with torch.enable_grad():
            model(torch.tensor([[1, 2, 3]])).square().mean().backward()
        optimizer.step()

    def loaded(self, model):
        model.load_state_dict(model_of(SMALL, 2).state_dict())

    def assigned(self, model):
        model.load_state_dict(model_of(SMALL, 2).state_dict(), assign=True)

    def replaced(self, model):
        model.ln_final.weight = torch.nn.Parameter(torch.rand(48))

    def converted(self, model):
        model.bfloat16()

    def another_block(self, model):
        model.blocks[0] = model_of(SMALL, 2).blocks[0]

    @pytest.mark.parametrize(
        "change",
        ["in_place", "trained", "loaded", "assigned", "replaced", "converted", "another_block"],
    )
    def test_in_between(self, change):
        model, tokens = model_of(SMALL), torch.randint(70, (1, 5))
        before = prefill(model, tokens, KVCache(SMALL))
        getattr(self, change)(model)
        after = prefill(model, tokens, KVCache(SMALL))
        assert not torch.equal(after, before)
        assert close(after, plain(model.float(), tokens, KVCache(SMALL)))


class Scaled(FlashAttention):
    def attend(self, q, k, v, mask=None):
        return 2 * super().attend(q, k, v, mask)


class TestFallBack:
    """Where there are no kernels, the model computes, and nobody notices."""

    def other_class(self, model):
        model.blocks[0].attention = Scaled(SMALL, 0)

    def hook(self, model):
        model.blocks[0].register_forward_hook(lambda module, x, y: 2 * y)

    def method(self, model):
        features = model.features
        model.features = lambda *given: 2 * features(*given)

    @pytest.mark.parametrize("used_before", [False, True])
    @pytest.mark.parametrize("change", ["other_class", "hook", "method"])
    def test_another_model(self, change, used_before):
        model, tokens = model_of(SMALL), torch.randint(70, (2, 5))
        if used_before:
            prefill(model, tokens, KVCache(SMALL))
        getattr(self, change)(model)
        assert decoder_of(model, KVCache(SMALL)) is None
        found = prefill(model.eval(), tokens, KVCache(SMALL))
        assert torch.equal(found, plain(model, tokens, KVCache(SMALL)))

    def test_training_and_gradients(self):
        model, cache = model_of(SMALL), KVCache(SMALL)
        assert decoder_of(model, cache) is not None
        with torch.enable_grad():
            assert prefill(model, torch.tensor([[1]]), KVCache(SMALL)).requires_grad
        assert decoder_of(model.train(), cache) is None

    def test_stand_ins_of_training_are_no_other_model(self):
        """A run's samples are written as fast as any text."""
        model = model_of(SMALL)
        NumbaKernels().attach(model, torch.float32)
        assert decoder_of(model, KVCache(SMALL)) is not None

    def test_a_cache_of_other_numbers(self):
        model, cache = model_of(SMALL).bfloat16(), KVCache(SMALL)
        model(torch.tensor([[1, 2]]), cache)
        assert decoder_of(model, cache) is None


class TestKeptCode:
    """Where the machine code is kept, anything may happen to it."""

    @pytest.fixture
    def code(self) -> bytes:
        assert decoder_of(model_of(SMALL), KVCache(SMALL)) is not None  # it is kept by now
        folder = kept_folder("kernels")
        assert folder is not None
        return max(
            folder.glob("decode_stages.*.o"), key=lambda path: path.stat().st_mtime
        ).read_bytes()

    def link(self, folder: Path, monkeypatch, code: bytes) -> int:
        """How often it is translated."""
        translated: list[str] = []

        def translate(*names):
            translated.append(names[0])
            return code[object_code.DIGEST_BYTES :]

        monkeypatch.setattr(object_code, "_translated_elsewhere", translate)
        object_code.machine_code(MODULE, GROUP, folder)
        return len(translated)

    @pytest.mark.parametrize("damage", ["cut", "turned", "empty"])
    def test_a_damaged_file_is_made_anew(self, tmp_path, monkeypatch, code, damage):
        assert self.link(tmp_path, monkeypatch, code) == 1
        assert self.link(tmp_path, monkeypatch, code) == 0
        (path,) = tmp_path.iterdir()
        turned = code[:5000] + bytes([code[5000] ^ 1]) + code[5001:]
        path.write_bytes({"cut": code[:-1], "turned": turned, "empty": b""}[damage])
        assert self.link(tmp_path, monkeypatch, code) == 1
        assert self.link(tmp_path, monkeypatch, code) == 0 and path.read_bytes() == code

    def asked(self, monkeypatch, caplog, level=logging.INFO) -> str:
        """What is said when there is no code; the model is there all the same."""
        decode_cpu._found.clear()
        decode_cpu._tell.cache_clear()
        model = model_of(SMALL)
        with caplog.at_level(level, "myllm"):
            for _ in range(2):
                assert decoder_of(model, KVCache(SMALL)) is None
        assert prefill(model, torch.tensor([[1]]), KVCache(SMALL)).shape == (1, 70)
        decode_cpu._found.clear()
        assert caplog.text.count("several times slower") == 1
        return caplog.text

    def test_nowhere_to_keep_it(self, tmp_path, monkeypatch, caplog):
        (tmp_path / "file").write_text("", encoding="utf-8")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert "no folder to keep" in self.asked(monkeypatch, caplog)

    def test_the_compiler_fails(self, tmp_path, monkeypatch, caplog):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(sys, "executable", sys.executable + "-is-not-there")
        assert "FileNotFoundError" in self.asked(monkeypatch, caplog)

    def test_what_failed_is_not_tried_at_every_start(self, tmp_path, monkeypatch):
        monkeypatch.setattr(object_code, "MOST_S", 0.001)
        for error in (subprocess.TimeoutExpired, RuntimeError):
            with pytest.raises(error):
                object_code.machine_code(MODULE, GROUP, tmp_path)

    @pytest.mark.parametrize("missing", ["llvmlite.binding", "numba"])
    def test_without_numba(self, tmp_path, monkeypatch, caplog, missing):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setitem(sys.modules, missing, None)
        said = self.asked(monkeypatch, caplog, logging.DEBUG)
        assert "pip install numba" in said
        assert not list(tmp_path.rglob("*.o"))  # it may be installed later

    @pytest.mark.slow
    def test_two_processes_at_once(self, tmp_path):
        """Each translates, both compute, one file is left."""
        script = (
            "import torch; from myllm.config import GPTConfig; from myllm.model import *\n"
            "from myllm.kernels.decode_cpu import decoder_of\n"
            "config = GPTConfig(vocab_size=9, d_model=8, n_heads=2, n_layers=1)\n"
            "model = GPTModel(config).eval()\n"
            "with torch.no_grad(): print(decoder_of(model, KVCache(config)) is not None)"
        )
        env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
        words = [sys.executable, "-c", script]
        both = [subprocess.Popen(words, env=env, stdout=subprocess.PIPE) for _ in range(2)]
        assert [child.communicate(timeout=300)[0].strip() for child in both] == [b"True"] * 2
        assert len(list((tmp_path / "myllm" / "kernels").iterdir())) == 1
