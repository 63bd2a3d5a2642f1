"""Losses and steps: accumulation is invisible (law 5), what is masked teaches nothing (law 10)."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from myllm.config import TrainConfig
from myllm.data.dataset import Batch
from myllm.errors import InputError
from myllm.model import GPTModel
from myllm.train.loss import LossFunction, language_loss
from myllm.train.step import StepResult, TrainStep

CPU = torch.device("cpu")
# A rate at which a step moves weights by up to 5e-5, fifty times what is tolerated; Muon rounds
# directions to bfloat16, which leaves 1e-2 of their size.
CONFIG = TrainConfig(
    max_steps=10, warmup_steps=0, schedule="constant", learning_rate=5e-5, grad_clip=0.0,
    weight_decay=0.1, device="cpu", dtype="float32",
)  # fmt: skip
B, T, V = 10, 16, 61
UNEQUAL = [16, 1, 3, 0, 16, 9, 2, 0, 0, 5]  # targets that count in each sequence


def make_batch(counts: list[int] | None = None, seed: int = 1) -> Batch:
    """Random tokens; of each sequence so many targets count, at random places."""
    rng = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(V, (2, B, T), generator=rng)
    mask = torch.ones(B, T, dtype=torch.bool)
    for row, count in zip(mask, counts or []):
        row[torch.randperm(T, generator=rng)[count:]] = False
    return Batch(tokens, targets, mask)


@pytest.fixture
def learn(model_config):
    """Does one step on a batch; gives its result, its gradients and the weights after it."""

    def step(
        batch: Batch,
        k: int = 1,
        optimizer: str = "muon",
        loss: LossFunction = language_loss,
        dtype: torch.dtype = torch.float32,
    ) -> tuple[StepResult, dict[str, Tensor], dict[str, Tensor]]:
        torch.manual_seed(1)
        model = GPTModel(dataclasses.replace(model_config, vocab_size=V, context_length=T))
        config = dataclasses.replace(CONFIG, accumulation_steps=k, optimizer=optimizer)
        train_step = TrainStep(model, config, CPU, dtype, loss)
        gradients: dict[str, Tensor] = {}

        def look(*_: object) -> None:
            for name, p in model.named_parameters():
                assert p.grad is not None, name
                gradients[name] = p.grad.clone()

        train_step.optimizer.register_step_pre_hook(look)
        result = train_step(batch, 0)
        return result, gradients, {n: p.detach() for n, p in model.named_parameters()}

    return step


def assert_alike(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-6, rtol=0, msg=name)


class TestBatch:
    @pytest.mark.parametrize("n", [1, 2, 3, 5, 10])
    def test_split_keeps_every_sequence_in_order(self, n):
        batch = make_batch(UNEQUAL)
        parts = batch.split(n)
        assert len(parts) == n and {p.n_sequences for p in parts} <= {B // n, -(-B // n)}
        for name in Batch._fields:
            assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(batch, name))


class TestLanguageLoss:
    @pytest.mark.parametrize("at_once", [V, V * 7, 10**9])
    def test_in_parts_or_at_once(self, small_model, monkeypatch, at_once):
        """The logits in parts give the loss and the gradients of all logits at once."""
        batch = make_batch(UNEQUAL)
        logits = small_model(batch.tokens)[batch.mask]
        expected = F.cross_entropy(logits, batch.targets[batch.mask], reduction="sum")
        expected.backward()
        wanted = [p.grad.clone() for p in small_model.parameters()]
        small_model.zero_grad()
        monkeypatch.setattr("myllm.model.head.LOGITS_AT_ONCE", at_once)
        nats, n_targets = language_loss(small_model, batch)
        nats.backward()
        assert n_targets == sum(UNEQUAL)
        assert nats.item() == pytest.approx(expected.item(), rel=1e-6)
        for p, gradient in zip(small_model.parameters(), wanted):
            torch.testing.assert_close(p.grad, gradient, atol=1e-5, rtol=1e-4)


class TestAccumulation:
    """Law 5: k micro-batches give gradients and weights of the one large batch."""

    @pytest.mark.parametrize("at_once", [V * 7, 10**9], ids=["in parts", "at once"])
    @pytest.mark.parametrize("optimizer", ["adamw", "muon"])
    @pytest.mark.parametrize("counts", [None, UNEQUAL], ids=["unmasked", "masked"])
    def test_is_invisible(self, learn, monkeypatch, optimizer, counts, at_once):
        monkeypatch.setattr("myllm.model.head.LOGITS_AT_ONCE", at_once)
        batch = make_batch(counts)
        whole, gradients, weights = learn(batch, 1, optimizer)
        assert max(g.abs().max().item() for g in gradients.values()) > 1e-2
        for k in (2, 3, 5):
            result, k_gradients, k_weights = learn(batch, k, optimizer)
            assert result.n_targets == whole.n_targets == (sum(counts) if counts else B * T)
            assert result.loss == pytest.approx(whole.loss, rel=1e-6)
            assert result.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
            assert_alike(k_gradients, gradients)
            assert_alike(k_weights, weights)
            others = learn(make_batch(counts, seed=2), k, optimizer)[2]
            with pytest.raises(AssertionError):
                assert_alike(others, weights)

    def test_is_the_gradient_of_the_mean_over_counted_targets(self, learn, small_model):
        batch = make_batch(UNEQUAL)
        _, gradients, _ = learn(batch, 5)
        logits = small_model(batch.tokens)[batch.mask]  # (n, V)
        F.cross_entropy(logits, batch.targets[batch.mask]).backward()
        assert_alike(gradients, {n: p.grad for n, p in small_model.named_parameters()})

    @pytest.mark.parametrize("k", [1, 2, 5])
    def test_a_count_that_only_the_loss_knows(self, learn, k):
        """Only targets below 30 count here, which no mask tells."""

        def loss(model, batch):
            return language_loss(model, batch._replace(mask=batch.mask & (batch.targets < 30)))

        batch = make_batch(UNEQUAL)
        told = batch._replace(mask=batch.mask & (batch.targets < 30))
        expected, gradients, _ = learn(told)
        result, k_gradients, _ = learn(batch, k, loss=loss)
        assert result.n_targets == expected.n_targets == int(told.mask.sum())
        assert result.loss == pytest.approx(expected.loss, rel=1e-6)
        assert_alike(k_gradients, gradients)

    def test_counts_may_be_ints(self, learn):
        def loss(model, batch):
            nats, n_targets = language_loss(model, batch)
            return nats, int(n_targets)

        batch = make_batch(UNEQUAL)
        assert learn(batch, 2, loss=loss)[0] == learn(batch, 2)[0]

    def test_float16_does_not_overflow(self, learn):
        """65,504 is the largest number of float16: scaled sums of nats would be beyond it."""
        batch = make_batch()
        exact, gradients, _ = learn(batch)
        for k in (1, 2):
            result, half, _ = learn(batch, k, dtype=torch.float16)
            assert result.loss == pytest.approx(exact.loss, rel=1e-2)
            assert result.grad_norm == pytest.approx(exact.grad_norm, rel=2e-2)
            for name, gradient in gradients.items():
                torch.testing.assert_close(half[name], gradient, atol=2e-3, rtol=2e-2, msg=name)


class TestMask:
    @pytest.mark.parametrize("k", [1, 3])
    def test_what_is_masked_teaches_nothing(self, learn, k):
        """Law 10: to the last bit."""
        batch = make_batch(UNEQUAL)
        result, gradients, weights = learn(batch, k)
        others = torch.randint(V, (B, T), generator=torch.Generator().manual_seed(7))
        changed = batch._replace(targets=batch.targets.where(batch.mask, others))
        assert not torch.equal(changed.targets, batch.targets)
        result_2, gradients_2, weights_2 = learn(changed, k)
        assert result == result_2
        for name in gradients:
            assert torch.equal(gradients[name], gradients_2[name]), name
            assert torch.equal(weights[name], weights_2[name]), name

    def test_what_counts_teaches(self, learn):
        batch = make_batch(UNEQUAL)
        targets = batch.targets.where(~batch.mask, (batch.targets + 1) % V)
        assert learn(batch)[0] != learn(batch._replace(targets=targets))[0]

    @pytest.mark.parametrize("k", [1, 2])
    def test_a_batch_without_targets_is_refused(self, small_model, k):
        config = dataclasses.replace(CONFIG, accumulation_steps=k)
        train_step = TrainStep(small_model, config, CPU, torch.float32)
        before = {n: p.clone() for n, p in small_model.state_dict().items()}
        with pytest.raises(InputError, match="^step 3: none of the batch's 160 targets counts"):
            train_step(make_batch([0] * B), 3)
        assert all(torch.equal(p, before[n]) for n, p in small_model.state_dict().items())
        assert all(p.grad is None for p in small_model.parameters())
