"""Export to GGUF: llama.cpp computes the same from the same text."""

from __future__ import annotations

import json.decoder
import math
import os
import sys
import time
import unicodedata
from pathlib import Path

import gguf
import pytest
import torch
from exports import LAYOUTS, NASTY, SPACES, engine_of, make_run
from tokenizers import pre_tokenizers

from myllm.cli import main
from myllm.errors import InputError
from myllm.formats import read_back
from myllm.formats.gguf import export_gguf
from myllm.formats.gguf_tokenizer import add_tokenizer
from myllm.formats.hf_export import export_huggingface
from myllm.formats.hf_import import import_huggingface
from myllm.formats.readers import ExportError, with_llama_cpp, with_myllm
from myllm.runs.folder import RunFolder
from myllm.tokenizer import CharTokenizer

PAGE = Path(json.decoder.__file__).read_text(encoding="utf-8")  # a text that is at hand


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run for each kind of tokenizer, trained for a moment on one text."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "page.txt"
    text.write_text(PAGE, encoding="utf-8")
    flags = (
        f"--out {folder} --data-dir {folder / 'data'} --d-model 64 --n-layers 2 --n-heads 4 "
        "--d-ff 96 --context-length 512 --batch-size 1 --max-steps 60"
    )
    runs = {}
    for kind, more in (("bpe", "--vocab-size 400"), ("char", "")):
        command = ["train", str(text), "--tokenizer", kind, "--run", kind]
        command += [*flags.split(), *more.split()]
        assert main(command) == 0
        runs[kind] = RunFolder(folder / kind)
    return runs


class TestGGUF:
    """Against llama.cpp."""

    @pytest.mark.parametrize("kind", ["bpe", "char"])
    @pytest.mark.parametrize("preset, changes", LAYOUTS, ids=str)
    def test_llama_cpp_computes_the_same(self, tmp_path, request, preset, changes, kind):
        run = make_run(tmp_path, request.getfixturevalue(kind), preset, **changes)
        export_gguf(run, tmp_path / "model.gguf")
        found = read_back(run, "gguf", tmp_path / "model.gguf")
        assert found is not None and found.ours == found.theirs
        assert found.difference <= 1e-3 * found.scale

    @pytest.mark.parametrize("quantization", ["f16", "bf16", "q8_0"])
    def test_smaller_numbers(self, tmp_path, bpe, quantization):
        run = make_run(tmp_path, bpe, d_model=64, n_heads=4, d_ff=96)
        export_gguf(run, tmp_path / "model.gguf", {"quantize": quantization})
        found = read_back(run, "gguf", tmp_path / "model.gguf")
        assert found is not None and found.difference <= 0.05 * found.scale

    @pytest.mark.parametrize("kind", ["bpe", "char"])
    def test_ids_of_nasty_strings(self, tmp_path, request, kind):
        """Of several unknown characters in a row llama.cpp makes one."""
        tokenizer = request.getfixturevalue(kind)
        export_gguf(make_run(tmp_path, tokenizer), tmp_path / "model.gguf")
        with with_llama_cpp(tmp_path / "model.gguf") as reader:
            for text in [*NASTY, "the king: 你好 n"]:
                ids = tokenizer.encode(text)
                if kind == "char":
                    ids = [id for i, id in enumerate(ids) if id or not i or ids[i - 1]]
                assert reader.encode(text) == ids, repr(text)

    def test_the_file(self, tmp_path, bpe):
        """What needs no llama.cpp: the package that wrote it reads it."""
        run = make_run(tmp_path, bpe)
        export_gguf(run, tmp_path / "model.gguf", {"quantize": "f16"})
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        assert reader.fields["general.architecture"].contents() == "qwen3"
        assert len(reader.fields["tokenizer.ggml.tokens"].contents()) == bpe.vocab_size
        assert {tensor.name for tensor in reader.tensors} >= {
            "token_embd.weight",
            "blk.2.ffn_up.weight",
        }
        modelfile = (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
        assert "FROM ./model.gguf" in modelfile and 'stop "<|endoftext|>"' in modelfile

    @pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
    def test_the_reader_leaves_nothing_behind(self, tmp_path, bpe):
        """No thread, also where reading ends in an error."""
        export_gguf(make_run(tmp_path, bpe), tmp_path / "model.gguf")
        with with_llama_cpp(tmp_path / "model.gguf") as reader:
            assert reader.encode("the king") == bpe.encode("the king")
        threads = len(os.listdir("/proc/self/task"))
        for _ in range(3):
            with pytest.raises(ExportError, match="cannot compute with .*128 tokens"):
                with with_llama_cpp(tmp_path / "model.gguf") as reader:
                    reader.feed([5] * 129)
        assert len(os.listdir("/proc/self/task")) == threads

    def test_a_large_vocabulary(self, tmp_path):
        """The work for the names of 150,000 tokens is linear; a quadratic one takes minutes."""
        tokenizer = CharTokenizer().train("".join(map(chr, range(0x10000, 0x35000))))
        writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
        began = time.process_time()
        add_tokenizer(writer, tokenizer, tokenizer.vocab_size + 1000)
        assert time.process_time() - began < 10
        names = writer.kv_data[0]["tokenizer.ggml.tokens"].value
        assert len(names) == 152_554 and names[2] == chr(0x10001)

    def test_stretched_positions_of_a_layout_that_has_none(self, tmp_path, bpe):
        run = make_run(tmp_path, bpe, "modern", rope_factor=4.0, rope_original_context=32)
        with pytest.raises(InputError, match="in the llama layout only, and this is qwen3"):
            export_gguf(run, tmp_path / "model.gguf")
        export_huggingface(run, tmp_path / "hf")
        found = read_back(run, "hf", tmp_path / "hf")
        assert found is not None and found.equal

    def test_rows_that_blocks_do_not_fill(self, tmp_path, bpe):
        """48 is no multiple of the 32 numbers of a block: those matrices are kept in f16."""
        run = make_run(tmp_path, bpe, d_ff=96)
        export_gguf(run, tmp_path / "model.gguf", {"quantize": "q8_0"})
        tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
        kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
        assert kinds["blk.0.ffn_up.weight"] == "F16" and kinds["blk.0.ffn_down.weight"] == "Q8_0"
        assert kinds["output_norm.weight"] == "F32"

    @pytest.mark.parametrize(
        "quantization, within",
        [
            ("f32", 1e-5),
            *(
                pytest.param(*row, marks=pytest.mark.slow)
                for row in [
                    ("f16", 1e-3),
                    ("bf16", 1e-2),
                    ("q8_0", 1e-2),
                    ("q5_1", 0.05),
                    ("q5_0", 0.05),
                    ("q4_1", 0.1),
                    ("q4_0", 0.1),
                ]
            ),
        ],
    )
    @pytest.mark.parametrize("kind", [pytest.param("bpe", marks=pytest.mark.slow), "char"])
    def test_perplexity_of_a_page(self, tmp_path, trained, kind, quantization, within):
        """Of a model that was really trained, over its whole context."""
        run = trained[kind]
        export_gguf(run, tmp_path / "model.gguf", {"quantize": quantization})
        ids = run.tokenizer.encode(PAGE)[:512]
        assert len(ids) == 512
        losses = []
        for opened in (with_myllm(run), with_llama_cpp(tmp_path / "model.gguf", 512)):
            with opened as reader:
                loss = torch.nn.functional.nll_loss(reader.feed(ids[:-1]), torch.tensor(ids[1:]))
                losses.append(loss.item())
        assert losses[0] < 0.9 * math.log(run.tokenizer.vocab_size)  # it has learned something
        assert math.exp(losses[1] - losses[0]) == pytest.approx(1, abs=within)


class TestImported:
    """Imported models, which bring a tokenizer of their own."""

    @pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", *SPACES])
    def test_into_llama_cpp(self, tmp_path, foreign, name):
        """They become GGUF: the same logits, and ids of nasty strings."""
        folder = foreign("qwen3" if name == "qwen2" else "llama", engine=engine_of(name))
        run = import_huggingface(folder, tmp_path, "in")
        export_gguf(run, tmp_path / "model.gguf")
        found = read_back(run, "gguf", tmp_path / "model.gguf")
        assert found is not None and found.ours == found.theirs
        assert found.difference <= 1e-3 * found.scale
        with with_llama_cpp(tmp_path / "model.gguf") as reader:
            for text in NASTY:
                if name == "qwen2":  # llama.cpp does not compose characters, and we say so
                    text = unicodedata.normalize("NFC", text)
                assert reader.encode(text) == run.tokenizer.encode(text), repr(text)

    def test_tokenizers_that_llama_cpp_does_not_know(self, tmp_path, foreign):
        engine = engine_of("gpt-2")
        engine.pre_tokenizer = pre_tokenizers.Whitespace()
        run = import_huggingface(foreign("llama", engine=engine), tmp_path, "in")
        with pytest.raises(InputError, match="no rule that cuts texts"):
            export_gguf(run, tmp_path / "model.gguf")
        assert not (tmp_path / "model.gguf").exists()

    def test_a_space_only_before_texts_that_begin_with_none(self, tmp_path, foreign):
        """llama.cpp puts one before each."""
        engine = engine_of("metaspace")
        engine.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
        run = import_huggingface(foreign("llama", engine=engine), tmp_path, "in")
        with pytest.raises(InputError, match="does not treat spaces"):
            export_gguf(run, tmp_path / "model.gguf")
