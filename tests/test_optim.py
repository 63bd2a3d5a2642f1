"""Parameter groups, optimizers and schedules."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from myllm.config import TrainConfig
from myllm.errors import ConfigError
from myllm.train.optim import (
    OPTIMIZERS,
    Role,
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    orthogonalize,
    parameter_groups,
)
from myllm.train.schedules import SCHEDULES, get_scheduler, learning_rate_factor


class Rows(torch.nn.Embedding):
    """A matrix that is no hidden one."""

    role = Role.EMBEDDING


class Otherwise(torch.nn.Module):
    """Another layout, in which no name says what a parameter is for."""

    class Scores(torch.nn.Linear):
        role = Role.HEAD

    class Added(torch.nn.Linear):
        role = Role.ADAPTER

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.blocks = Rows(9, 8)  # a name that once decided
        self.norm = torch.nn.LayerNorm(8)
        self.stack = torch.nn.Sequential(torch.nn.Linear(8, 4), self.Added(4, 8, bias=False))
        self.last = self.Scores(8, 9)


class TestGroups:
    def test_roles_decide_not_names(self):
        model = Otherwise()
        names = {p: name for name, p in model.named_parameters()}
        found = {
            (g["orthogonal"], g["weight_decay"] > 0): {names[p] for p in g["params"]}
            for g in parameter_groups(model, TrainConfig(optimizer="muon", weight_decay=0.1))
        }
        assert found == {
            (True, True): {"first.weight", "stack.0.weight"},
            (False, True): {"blocks.weight", "stack.1.weight", "last.weight"},
            (False, False): {
                "first.bias",
                "norm.weight",
                "norm.bias",
                "stack.0.bias",
                "last.bias",
            },
        }

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_frozen_parameters_are_left_alone(self, small_model, optimizer):
        """Also by weight decay, and with a gradient from elsewhere."""
        frozen = {
            "token_embedding.weight", "blocks.0.attention.W_q.weight", "blocks.1.ln1.weight",
        }  # fmt: skip
        for name, p in small_model.named_parameters():
            p.requires_grad_(name not in frozen)
        config = TrainConfig(optimizer=optimizer, weight_decay=0.5)
        listed = {p for group in parameter_groups(small_model, config) for p in group["params"]}
        assert listed == {p for n, p in small_model.named_parameters() if n not in frozen}
        before = {n: p.detach().clone() for n, p in small_model.named_parameters()}
        step = build_optimizer(small_model, config)
        for p in small_model.parameters():
            p.grad = torch.ones_like(p)
        step.step()
        for name, p in small_model.named_parameters():
            assert torch.equal(p, before[name]) == (name in frozen), name

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_every_parameter_is_in_one_group(self, small_model, optimizer):
        groups = parameter_groups(small_model, TrainConfig(optimizer=optimizer))
        listed = [id(p) for group in groups for p in group["params"]]
        assert sorted(listed) == sorted(id(p) for p in small_model.parameters())

    def test_only_matrices_decay(self, small_model):
        for group in parameter_groups(small_model, TrainConfig(weight_decay=0.1)):
            for p in group["params"]:
                assert (group["weight_decay"] > 0) == (p.ndim >= 2)

    def test_muon_has_the_hidden_matrices_only(self, small_model):
        groups = parameter_groups(small_model, TrainConfig(optimizer="muon"))
        hidden = {id(p) for g in groups if g["orthogonal"] for p in g["params"]}
        for name, p in small_model.named_parameters():
            assert (id(p) in hidden) == (name.startswith("blocks.") and p.ndim == 2), name


class TestOptimizers:
    @pytest.mark.parametrize("shape", [(3, 32, 32), (2, 64, 16), (2, 16, 64)])
    def test_orthogonalize(self, shape):
        """Singular values come near 1, and the directions stay those of the matrix."""
        x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        y = orthogonalize(x).float()
        assert y.shape == x.shape
        values = torch.linalg.svdvals(y)
        assert values.min() > 0.3 and values.max() < 1.3
        u, _, vh = torch.linalg.svd(x, full_matrices=False)
        nearest = u @ vh
        cosine = (y * nearest).sum((-2, -1)) / (y.norm(dim=(-2, -1)) * nearest.norm(dim=(-2, -1)))
        assert cosine.min() > 0.95

    def test_muon_adam_part_is_adamw(self):
        """On what is no hidden matrix, one and three steps equal torch's AdamW."""
        ours, theirs = (Rows(5, 4, _weight=torch.ones(5, 4)) for _ in range(2))
        config = TrainConfig(optimizer="muon", learning_rate=0.1, weight_decay=0.2)
        a = build_optimizer(ours, config)
        b = build_optimizer(theirs, dataclasses.replace(config, optimizer="adamw"))
        for seed in range(3):
            gradient = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
            ours.weight.grad, theirs.weight.grad = gradient, gradient.clone()
            a.step(), b.step()
            torch.testing.assert_close(ours.weight, theirs.weight)

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_learns(self, small_model, optimizer):
        tokens = torch.randint(61, (4, 16), generator=torch.Generator().manual_seed(1))
        step = build_optimizer(small_model, TrainConfig(optimizer=optimizer, learning_rate=0.01))
        losses = []
        for _ in range(15):
            logits = small_model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            losses.append(loss.item())
            step.step()
            step.zero_grad()
        assert losses[-1] < 0.7 * losses[0]

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    def test_state_round_trip(self, small_model, optimizer):
        def step(optimizer, seed):
            torch.manual_seed(seed)
            for p in small_model.parameters():
                p.grad = torch.randn_like(p)
            optimizer.step()

        config = TrainConfig(optimizer=optimizer)
        first = build_optimizer(small_model, config)
        step(first, 1)
        weights = {n: p.clone() for n, p in small_model.state_dict().items()}
        tensors = {n: t.clone() for n, t in optimizer_tensors(small_model, first).items()}
        step(first, 2)
        expected = {n: p.clone() for n, p in small_model.state_dict().items()}
        small_model.load_state_dict(weights)
        second = build_optimizer(small_model, config)
        load_optimizer_tensors(small_model, second, tensors)
        step(second, 2)
        for name, p in small_model.state_dict().items():
            assert torch.equal(p, expected[name]), name

    def test_unknown(self, small_model):
        with pytest.raises(ConfigError, match="did you mean .*adamw"):
            build_optimizer(small_model, TrainConfig(optimizer="adam"))


class TestSchedules:
    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_is_the_scheduler_at_every_step(self, schedule):
        """`get_scheduler` follows the pure function, from the start and from any step."""
        config = TrainConfig(schedule=schedule, max_steps=50, warmup_steps=5, learning_rate=0.5)
        expected = [0.5 * learning_rate_factor(step, config) for step in range(50)]
        for start in (0, 3, 31):
            p = torch.nn.Parameter(torch.zeros(1))
            optimizer = torch.optim.SGD([p], lr=0.5)
            scheduler = get_scheduler(optimizer, config, start_step=start)
            for step in range(start, 50):
                assert optimizer.param_groups[0]["lr"] == pytest.approx(expected[step]), step
                optimizer.step()
                scheduler.step()

    @pytest.mark.parametrize("schedule", SCHEDULES)
    def test_ends_between_nothing_and_the_peak(self, schedule):
        """Any schedule: it warms up to its own beginning, and stays between 0 and the peak."""
        config = TrainConfig(schedule=schedule, max_steps=1000, warmup_steps=100)
        factors = [learning_rate_factor(step, config) for step in range(1000)]
        shape = SCHEDULES[schedule]
        assert 0 <= min(factors) and max(factors) <= 1
        assert factors[:101] == sorted(factors[:101])
        assert factors[100] == shape(0.0) and factors[-1] == pytest.approx(shape(1.0), abs=0.02)

    @pytest.mark.parametrize("schedule", ["cosine", "linear_warmup", "one_cycle", "wsd"])
    def test_rises_and_falls(self, schedule):
        config = TrainConfig(schedule=schedule, max_steps=100, warmup_steps=10)
        factors = [learning_rate_factor(step, config) for step in range(100)]
        peak = factors.index(max(factors))
        assert max(factors) == pytest.approx(1, abs=0.05)
        assert factors[0] < 0.2 and factors[-1] < 0.1
        assert factors[: peak + 1] == sorted(factors[: peak + 1])
        assert factors[peak:] == sorted(factors[peak:], reverse=True)

    def test_constant_stays(self):
        config = TrainConfig(schedule="constant", max_steps=100, warmup_steps=0)
        assert {learning_rate_factor(step, config) for step in range(100)} == {1.0}

    def test_floor(self):
        config = TrainConfig(schedule="cosine", max_steps=100, min_learning_rate=0.1)
        assert learning_rate_factor(99, config) == pytest.approx(0.1, abs=0.01)

    def test_unknown(self):
        with pytest.raises(ConfigError, match="did you mean cosine"):
            learning_rate_factor(0, TrainConfig(schedule="cosin"))
