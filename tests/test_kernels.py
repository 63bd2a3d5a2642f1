"""What makes a model faster: when it is used, and that it computes the same."""

from __future__ import annotations

import pytest
import torch

from myllm.data.dataset import Batch
from myllm.errors import ConfigError
from myllm.system.device import choose_attention
from myllm.train import kernels
from myllm.train.kernels import checked_device

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
