"""PyTorch's private names and texts: each test that fails here names what a new version broke."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from myllm.system import torch_adapter as adapter


@pytest.fixture
def pair() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    rng = torch.Generator().manual_seed(1)
    first = [torch.randn(n, 3, generator=rng) for n in (2, 5)]
    return first, [torch.randn_like(x) for x in first]


class TestForeach:
    def test_scale_each(self, pair):
        expected = [x * 0.5 for x in pair[0]]
        adapter.scale_each_(pair[0], 0.5)
        assert all(map(torch.equal, pair[0], expected))

    def test_add_each(self, pair):
        expected = [x.add(y, alpha=-2.0) for x, y in zip(*pair)]
        adapter.add_each_(pair[0], pair[1], -2.0)
        assert all(map(torch.equal, pair[0], expected))

    def test_lerp_each(self, pair):
        expected = [x.lerp(y, 0.05) for x, y in zip(*pair)]
        assert all(map(torch.equal, adapter.lerp_each(pair[0], pair[1], 0.05), expected))
        assert not torch.equal(pair[0][0], expected[0])
        adapter.lerp_each_(pair[0], pair[1], 0.05)
        assert all(map(torch.equal, pair[0], expected))


class TestCompiler:
    def test_undo_compile(self):
        """`_compiled_call_impl` is where `Module.compile` leaves its work."""
        module, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
        expected = module(x)
        assert not adapter.is_compiled(module)
        module.compile(backend=lambda graph, inputs: pytest.fail("it was compiled"))
        assert adapter.is_compiled(module)
        adapter.undo_compile(module)
        assert not adapter.is_compiled(module)
        assert torch.equal(module(x), expected)

    def test_loaded_only_when_something_is_compiled(self):
        code = (
            "import torch; from myllm.system.torch_adapter import compiler_is_loaded as loaded; "
            "a = loaded(); torch.nn.Linear(2, 2).compile(); print(a, loaded())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout == "False True\n", done.stderr


class TestWithoutContent:
    def test_shapes_and_no_memory(self):
        with adapter.tensors_without_content():
            large = torch.zeros(1 << 20, 1 << 20)  # 4 TiB
            assert (large @ large).shape == (1 << 20, 1 << 20)

    def test_autocast_is_followed(self):
        with adapter.tensors_without_content(), torch.autocast("cpu", torch.bfloat16):
            assert (torch.zeros(2, 2) @ torch.zeros(2, 2)).dtype == torch.bfloat16

    def test_views_share_one_storage_object(self):
        """`myllm.train.memory` counts storages as Python objects, each once."""
        with adapter.tensors_without_content():
            x = torch.zeros(4, 4)
            storages = {x.untyped_storage(), x[1:].untyped_storage(), x.mT.untyped_storage()}
            assert len(storages | {torch.zeros(4, 4).untyped_storage()}) == 2


class TestTexts:
    @pytest.mark.skipif(sys.platform != "linux", reason="the text of this system's allocator")
    def test_memory_that_ran_out_here(self):
        with pytest.raises(RuntimeError) as caught:
            torch.empty(1 << 60, dtype=torch.uint8)
        assert adapter.memory_ran_out(caught.value) == f"{1 << 60} bytes"

    @pytest.mark.parametrize(
        "error, asked",
        [
            (torch.OutOfMemoryError("CUDA: Tried to allocate 2.00 GiB."), "2.00 GiB"),
            (torch.OutOfMemoryError("in other words"), ""),
            (RuntimeError("not enough memory: you tried to allocate 64 bytes"),
             "64 bytes"),
            (RuntimeError("shapes differ"), None),
        ],
    )  # fmt: skip
    def test_memory_that_ran_out_elsewhere(self, error, asked):
        assert adapter.memory_ran_out(error) == asked

    @pytest.mark.gpu
    def test_memory_of_a_gpu(self):
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(1 << 45, dtype=torch.uint8, device="cuda")
        assert adapter.memory_ran_out(caught.value)

    @pytest.mark.filterwarnings("ignore:Anomaly Detection", "ignore:Error detected")
    def test_operation_with_nan(self):
        x = torch.zeros(1, requires_grad=True)
        with torch.autograd.detect_anomaly(check_nan=True):
            with pytest.raises(RuntimeError) as caught:
                (x.sqrt() * 0).backward()
        said = adapter.operation_with_nan(caught.value)
        assert said is not None and "SqrtBackward" in said and "\n" not in said
        assert adapter.operation_with_nan(RuntimeError("shapes differ")) is None


class TestModules:
    def test_where_parameters_are(self):
        model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        slots = adapter.parameter_slots(model)
        assert [name for _, name in slots][:4] == ["weight", "bias", "weight", "bias"]
        model[0].weight = torch.nn.Parameter(torch.zeros(3, 2))
        held, name = slots[0]
        assert held[name] is model[0].weight
        version = model[0].weight._version
        with torch.no_grad():
            model[0].weight.add_(1)
        assert model[0].weight._version > version

    def test_what_was_changed(self):
        module = torch.nn.Linear(2, 3)
        assert not adapter.is_changed(module)
        handle = module.register_forward_pre_hook(lambda module, x: None)
        assert adapter.is_changed(module)
        handle.remove()
        assert not adapter.is_changed(module)
        vars(module)["forward"] = lambda x: x
        assert adapter.is_changed(module)
