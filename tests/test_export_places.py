"""Where an export cannot be, and models that share nothing with the text it is compared on."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from exports import make_run

from myllm.errors import InputError
from myllm.formats import FORMATS, export
from myllm.system.atomic import disk
from myllm.tokenizer import BPETokenizer, CharTokenizer

TINY: dict[str, Any] = dict(d_model=16, n_layers=1, n_heads=2, d_ff=24)
QUICK = [name for name in FORMATS if name != "onnx"]  # whose graph takes seconds to make


@pytest.fixture
def made(folder, char):
    return make_run(folder / "checkpoints", char, **TINY, context_length=16)


@pytest.fixture
def refused(made, run):
    """One line, this exit code, and nothing new on disk."""

    def check(code, *words, to="hf", out="new/folder/out"):
        before = sorted(Path(".").rglob("*"))
        found = run("export", made.path, "--to", to, "--out", out)
        assert found.code == code and len(found.lines) == 1, found.err
        for word in words:
            assert word in found.lines[0], found.lines[0]
        assert sorted(Path(".").rglob("*")) == before

    return check


@pytest.mark.parametrize("name", QUICK)
class TestPlaces:
    def test_below_a_file(self, refused, name):
        Path("file").write_text("text", encoding="utf-8")
        refused(2, "cannot export in file", to=name, out="file/out")
        refused(2, "cannot export in file/below", to=name, out="file/below/out")

    def test_a_name_that_no_disk_has(self, refused, name):
        refused(2, "cannot export in", to=name, out="x" * 300)

    @pytest.mark.parametrize("number, code", [(errno.ENOSPC, 4), (errno.EACCES, 2)])
    def test_a_disk_that_fails_at_the_end(self, refused, monkeypatch, name, number, code):
        real = disk.rename

        def fail(path, target):
            if "Modelfile" in target.name:
                return real(path, target)
            raise OSError(number, "the disk")

        monkeypatch.setattr(disk, "rename", fail)
        refused(code, "export in new/folder", to=name)

    def test_a_disk_that_is_full(self, refused, monkeypatch, name):
        full = SimpleNamespace(free=100)
        monkeypatch.setattr("myllm.system.atomic.shutil.disk_usage", lambda path: full)
        refused(4, "not enough disk space", "bytes are needed; name another --out", to=name)

    def test_what_is_there_stays(self, refused, name):
        for out in ("file", "folder", "link"):
            Path("file").write_text("text", encoding="utf-8")
            Path("folder").mkdir(exist_ok=True)
            if out == "link" and not Path("link").is_symlink():
                Path("link").symlink_to("nowhere")
            refused(2, "exists: name another --out", to=name, out=out)
        assert Path("file").read_text(encoding="utf-8") == "text"

    def test_folders_above_are_made(self, made, run, name):
        found = run("export", made.path, "--to", name, "--out", "new/folder/out", "--no-verify")
        assert found.code == 0 and Path("new/folder/out").exists()


def test_the_file_beside_a_gguf(refused):
    """It is not written over another, nor over the model."""
    Path("out.Modelfile").write_text("mine", encoding="utf-8")
    refused(2, "out.Modelfile exists", to="gguf", out="out.gguf")
    refused(2, "the file for Ollama", to="gguf", out="other.Modelfile")
    assert Path("out.Modelfile").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("name", QUICK)
class TestModels:
    @pytest.mark.parametrize("text", ["ACGT\n", "ACGT", "你好", "\u0639\u0644"], ids=ascii)
    def test_of_characters_that_the_text_lacks(self, tmp_path, name, text):
        run = make_run(tmp_path, CharTokenizer().train(text), **TINY, context_length=16)
        found = export(run, name, tmp_path / "out").compared
        assert found is not None and found.equal

    def test_of_bytes(self, tmp_path, name):
        run = make_run(tmp_path, BPETokenizer(257).train("ACGT"), "gpt2", **TINY)
        found = export(run, name, tmp_path / "out").compared
        assert found is not None and found.equal

    @pytest.mark.parametrize("preset", ["gpt2", "modern"])
    @pytest.mark.parametrize("context", [1, 2, 3])
    def test_of_a_short_context(self, made, run, tmp_path, char, name, preset, context):
        """llama.cpp opens none of a single token, and would end this process."""
        make_run(tmp_path / "short", char, preset, **TINY, context_length=context)
        found = run("export", tmp_path / "short" / "run", "--to", name, "--out", "out")
        assert found.code == 0, found.err
        unread = context == 1 and name == "gguf"
        assert ("read back with" not in found.out) == unread
        assert ("not read back" in found.err) == unread


@pytest.mark.slow
def test_onnx_alike(refused, tmp_path, monkeypatch):
    Path("file").write_text("text", encoding="utf-8")
    refused(2, "cannot export in file/below", to="onnx", out="file/below/out")
    short = make_run(tmp_path / "short", CharTokenizer().train("ACGT"), **TINY, context_length=4)
    with pytest.raises(InputError, match="context_length 4: .* 5 tokens.*--to hf"):
        export(short, "onnx", tmp_path / "out")
    run = make_run(tmp_path, CharTokenizer().train("ACGT"), **TINY, context_length=5)
    found = export(run, "onnx", tmp_path / "out").compared
    assert found is not None and found.equal

    def fail(path, target):
        raise OSError(errno.ENOSPC, "the disk")

    monkeypatch.setattr(disk, "rename", fail)
    refused(4, "not enough disk space", to="onnx")
