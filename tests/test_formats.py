"""The table of formats: one way to export, whatever the format; what is refused, and how."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from exports import make_run

from myllm.cli import main
from myllm.errors import ConfigError
from myllm.formats import FORMATS, ExportResult, export
from myllm.formats.gguf import QUANTIZATIONS
from myllm.formats.readers import ExportError


def test_named_after_the_run(tmp_path, monkeypatch, bpe):
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs", bpe)
    for name in ("hf", "gguf"):
        path = Path(f"run{FORMATS[name].suffix}")
        assert export(run, name, verify=False) == ExportResult(path)
        assert path.exists()


def test_all_are_called_alike(tmp_path, bpe):
    """What each writes with its defaults is what it writes without options."""
    run = make_run(tmp_path, bpe)
    for name in ("hf", "gguf"):
        FORMATS[name].write(run, tmp_path / name, {})
        found = export(run, name, tmp_path / f"again-{name}").compared
        assert found is not None and found.equal
    assert (tmp_path / "gguf").read_bytes() == (tmp_path / "again-gguf").read_bytes()


@pytest.mark.parametrize("name", [n for n in FORMATS if "quantize" not in FORMATS[n].options])
def test_an_option_that_a_format_has_not(tmp_path, bpe, name):
    run = make_run(tmp_path, bpe)
    with pytest.raises(
        ConfigError, match=f"--quantize q8_0 is an option of --to .*gguf.*, not of --to {name}"
    ):
        export(run, name, tmp_path / "out", {"quantize": "q8_0"})
    assert not (tmp_path / "out").exists()


def test_a_choice_that_an_option_has_not(tmp_path, bpe):
    with pytest.raises(ConfigError, match="unknown quantize 'q9': .*q8_0"):
        export(make_run(tmp_path, bpe), "gguf", tmp_path / "out", {"quantize": "q9"})


def test_a_format_that_does_not_exist(tmp_path, bpe):
    with pytest.raises(ConfigError, match="unknown format 'ggfu': did you mean gguf"):
        export(make_run(tmp_path, bpe), "ggfu")


def test_a_missing_reader(tmp_path, bpe, monkeypatch, capsys):
    lacking = dataclasses.replace(FORMATS["gguf"], reader_package="no_such_package")
    monkeypatch.setitem(FORMATS, "gguf", lacking)
    make_run(tmp_path, bpe)
    command = ["export", str(tmp_path / "run"), "--to", "gguf", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    assert "not read back and compared: that takes no_such_package" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["hf", "gguf"])
def test_what_computes_something_else_is_refused(tmp_path, bpe, monkeypatch, name):
    """Unless its numbers were made smaller, where a difference is what was asked for."""
    run, other = make_run(tmp_path / "a", bpe), make_run(tmp_path / "b", bpe, n_layers=2)
    wrong = FORMATS[name].write

    def write(_, out, options):
        wrong(other, out, options)

    monkeypatch.setitem(FORMATS, name, dataclasses.replace(FORMATS[name], write=write))
    with pytest.raises(ExportError, match="does not compute what run run computes"):
        export(run, name, tmp_path / "out")
    if FORMATS[name].options:
        found = export(run, name, tmp_path / "small", {"quantize": QUANTIZATIONS[-1]}).compared
        assert found is not None and not found.equal


@pytest.mark.parametrize("name", ["hf", "gguf"])
def test_a_damaged_export(tmp_path, bpe, name):
    run = make_run(tmp_path, bpe)
    path = tmp_path / "out"
    export(run, name, path, verify=False)
    file = path / "model.safetensors" if path.is_dir() else path
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ExportError, match="cannot read"):
        with FORMATS[name].reader(path):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_from_a_shell(tmp_path, bpe, name):
    """It ends, and no program's messages and warnings stand between ours."""
    make_run(tmp_path / "checkpoints", bpe)
    done = subprocess.run(
        [sys.executable, "-m", "myllm", "export", "run", "--to", name],
        cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr
    written, read, *texts = done.stdout.splitlines()
    assert written == f"run{FORMATS[name].suffix}: written"
    assert "64 tokens written greedily are the same" in read and len(texts) == 2
