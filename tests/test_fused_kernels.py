"""Numba's kernels: they compute what the model computes as it is written."""

from __future__ import annotations

import random
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch

from myllm.config import GPTConfig
from myllm.data.dataset import Batch
from myllm.kernels.plain import Kernels
from myllm.model import GPTModel
from myllm.train.kernels import use_kernels
from myllm.train.loss import mean_loss

pytest.importorskip("numba")

from myllm.kernels.fused import Attend, Dropped  # noqa: E402
from myllm.kernels.numbers import fill_factors  # noqa: E402
from myllm.kernels.stand_ins import NumbaKernels  # noqa: E402


def odd_model(case: int) -> tuple[GPTModel, Batch]:
    """A model and a batch of shapes that chance has chosen, as a function of their number."""
    r = random.Random(case)
    n_kv_heads, group, half = r.choice([1, 1, 2, 3]), r.choice([1, 2, 3]), r.randint(1, 20)
    T = r.choice([1, r.randint(2, 150)])
    config = GPTConfig(
        vocab_size=r.randint(2, 300), context_length=T + r.choice([0, 0, 5]),
        d_model=r.randint(4, 70), n_layers=r.randint(1, 2), n_heads=n_kv_heads * group,
        n_kv_heads=n_kv_heads, head_dim=2 * half, d_ff=r.choice([None, r.randint(1, 90)]),
        dropout=0.0, bias=r.random() < 0.5, position=r.choice(["learned", "rotary"]),
        norm=r.choice(["layernorm", "rmsnorm"]), feed_forward=r.choice(["gelu", "swiglu"]),
        qk_norm=r.random() < 0.5, tie_weights=r.random() < 0.5, attention="manual",
    )  # fmt: skip
    torch.manual_seed(case)
    model = GPTModel(config).train()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tokens, targets = torch.randint(config.vocab_size, (2, r.randint(1, 4), T))
    mask = torch.rand(tokens.shape) < r.choice([1.1, 0.7])
    mask[0, 0] = True
    return model, Batch(tokens, targets, mask)


def loss_and_gradient(model: GPTModel, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = mean_loss(model, batch)
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def check_equal(
    model: GPTModel, batch: Batch, tolerance: float, dtype: torch.dtype = torch.float32
) -> None:
    plain_loss, plain = loss_and_gradient(model, batch)
    kernels = NumbaKernels()
    kernels.attach(model, dtype)
    loss, gradient = loss_and_gradient(model, batch)
    kernels.detach(model)
    assert loss == pytest.approx(plain_loss, rel=tolerance)
    assert gradient.keys() == plain.keys()
    whole = torch.stack([g.norm() for g in plain.values()]).norm()
    for name in plain:
        assert (gradient[name] - plain[name]).norm() <= 10 * tolerance * whole, name


@pytest.mark.parametrize("case", range(12))
def test_loss_and_gradient_are_those_of_the_model(case):
    check_equal(*odd_model(case), 1e-5)


@pytest.mark.slow
def test_a_thousand_shapes():
    for case in range(12, 1000):
        check_equal(*odd_model(case), 1e-5)


@pytest.mark.parametrize("case", [3, 5])
def test_in_bfloat16(case):
    """Features and products in half the bits, on their way rounded as PyTorch rounds them."""
    model, batch = odd_model(case)
    with torch.autocast("cpu", torch.bfloat16):
        check_equal(model, batch, 1e-2)


def test_threads_share_rows_and_change_nothing_but_the_order_of_sums(monkeypatch):
    model, batch = odd_model(1)
    monkeypatch.setattr("myllm.kernels.loop_calls.LEAST", 0)
    check_equal(model, batch, 1e-5)


def test_long_losses_are_computed_in_parts(monkeypatch):
    monkeypatch.setattr("myllm.kernels.fused.LOGITS_AT_ONCE", 1000)
    check_equal(*odd_model(2), 1e-5)


def test_a_variant_of_ones_own_is_left_as_it_is():
    model, batch = odd_model(0)

    class Own(type(model.blocks[0].feed_forward)):  # type: ignore[misc]
        def forward(self, x):
            return 2 * super().forward(x)

    model.blocks[0].feed_forward.__class__ = Own
    check_equal(model, batch, 1e-5)


def test_detached_nothing_is_left_of_them():
    model, _ = odd_model(0)
    before = [type(module) for module in model.modules()]
    kernels = NumbaKernels()
    kernels.attach(model, torch.float32)
    assert before != [type(module) for module in model.modules()]
    kernels.detach(model)
    assert before == [type(module) for module in model.modules()]


def test_why_there_are_none_is_told_each_time(monkeypatch, tmp_path, caplog):
    """The first to ask is the thread that makes them while a text is prepared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("myllm.kernels.loop_calls._loaded", {})
    monkeypatch.setattr("myllm.kernels.loop_calls._failed", {})
    monkeypatch.setattr(sys, "executable", sys.executable + "-is-not-there")
    model, batch = odd_model(0)
    for _ in range(2):
        kernels = use_kernels("numba", model, batch, torch.float32, nullcontext())
        assert type(kernels) is Kernels
    assert caplog.text.count("which are slower: FileNotFoundError") == 2


class TestDropout:
    def test_share_and_scale(self):
        y = Dropped.apply(torch.ones(200, 333), 64)
        assert y.unique().tolist() == pytest.approx([0.0, 256 / 192])
        assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)

    def test_the_gradient_meets_what_was_kept(self):
        x = torch.ones(20, 33, requires_grad=True)
        y = Dropped.apply(x, 64)
        y.sum().backward()
        assert x.grad is not None and torch.equal(x.grad, y.detach())

    def test_decisions_follow_the_seed(self):
        draws = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            draws.append(Dropped.apply(torch.ones(20, 33), 64))
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])

    def test_decisions_have_no_order(self):
        """Neighbours in a row, in a column, and of two seeds decide independently."""
        first, second = (Dropped.apply(torch.ones(500, 500), 128) > 0 for _ in range(2))
        pairs = [(first[:, 1:], first[:, :-1]), (first[1:], first[:-1]), (first, second)]
        for a, b in pairs:
            assert (a == b).float().mean().item() == pytest.approx(0.5, abs=0.01)

    def test_of_attention(self):
        """Equal to the mathematics spelled out, with the factors of each query."""
        B, H, T, D, n_dropped = 2, 3, 70, 8, 50
        q, k, v = (torch.randn(B, H, T, D, requires_grad=True) for _ in range(3))
        torch.manual_seed(5)
        y = Attend.apply(q, k, v, n_dropped)
        torch.manual_seed(5)
        seed = np.int32(torch.randint(2**31 - 1, (1,), dtype=torch.int32).item())
        factors = np.empty((B * H * T, T), np.float32)
        for row, out in enumerate(factors):
            fill_factors(row * ((T + 3) // 4), seed, n_dropped, out)
        scores = q @ k.mT / D**0.5
        scores = scores.masked_fill(torch.ones(T, T).triu(1).bool(), -torch.inf)
        expected = (scores.softmax(-1) * torch.from_numpy(factors).view(B, H, T, T)) @ v
        torch.testing.assert_close(y, expected)
        slope = torch.randn_like(y)
        found = torch.autograd.grad(y, (q, k, v), slope)
        wanted = torch.autograd.grad(expected, (q, k, v), slope)
        torch.testing.assert_close(found, wanted)


def test_nan_is_not_hidden():
    """What went wrong shows in loss and gradient, as the loop looks for it there."""
    model, batch = odd_model(0)
    NumbaKernels().attach(model, torch.float32)
    with torch.no_grad():
        model.token_embedding.weight[0] = float("nan")
    batch.tokens.zero_()
    loss, gradient = loss_and_gradient(model, batch)
    assert not np.isfinite(loss)
    assert not all(g.isfinite().all() for g in gradient.values())


def test_evaluation_is_as_before():
    model, batch = odd_model(4)
    model.eval()
    with torch.inference_mode():
        expected = mean_loss(model, batch).item()
        NumbaKernels().attach(model, torch.float32)
        assert mean_loss(model, batch).item() == pytest.approx(expected, rel=1e-5)
