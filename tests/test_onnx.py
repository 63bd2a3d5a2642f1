"""Export to ONNX: onnxruntime computes the same from the same text."""

from __future__ import annotations

import pytest
import torch
from exports import LAYOUTS, make_run

from myllm.formats import read_back
from myllm.formats.onnx import export_onnx
from myllm.runs.weights import load_model


class TestONNX:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["bpe", "char"])
    @pytest.mark.parametrize("preset, changes", [LAYOUTS[1], LAYOUTS[3], LAYOUTS[8]], ids=str)
    def test_onnxruntime_computes_the_same(self, tmp_path, request, preset, changes, kind):
        run = make_run(tmp_path, request.getfixturevalue(kind), preset, **changes)
        export_onnx(run, tmp_path / "onnx")
        found = read_back(run, "onnx", tmp_path / "onnx")
        assert found is not None and found.equal and len(found.ours) == 64

    @pytest.mark.slow
    def test_a_layout_of_nobody(self, tmp_path, bpe):
        """A graph needs no program that knows the layout."""
        run = make_run(tmp_path, bpe, "modern", norm="layernorm", feed_forward="gelu")
        export_onnx(run, tmp_path / "onnx")
        found = read_back(run, "onnx", tmp_path / "onnx")
        assert found is not None and found.equal

    @pytest.mark.slow
    def test_batches_and_pieces(self, tmp_path, bpe):
        """Any batch, any number of tokens after any number that is held."""
        import onnxruntime

        run = make_run(tmp_path, bpe, n_kv_heads=2)
        export_onnx(run, tmp_path / "onnx")
        session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
        tokens = torch.randint(bpe.vocab_size, (3, 20))
        with torch.inference_mode():
            expected = load_model(run)[0](tokens)
        names = [entry.name for entry in session.get_inputs()[1:]]
        assert names[:2] == ["past_key_values.0.key", "past_key_values.0.value"]
        past = {name: torch.zeros(3, 2, 0, 8).numpy() for name in names}
        for piece in tokens.split([7, 1, 1, 11], dim=1):
            logits, *present = session.run(None, {"input_ids": piece.numpy(), **past})
            past = dict(zip(names, present))
            held = present[0].shape[2]
            torch.testing.assert_close(
                torch.from_numpy(logits), expected[:, held - piece.shape[1] : held]
            )
