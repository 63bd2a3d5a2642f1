"""The shapes that a Hugging Face folder comes in: what is read, and what is named as missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from exports import edit_json, their_folder
from safetensors.torch import load_file, save_file

from myllm.formats.hf_import import import_huggingface
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 12345\n"
INDEX = "model.safetensors.index.json"


@pytest.fixture
def theirs(tmp_path, char) -> Path:
    return their_folder(tmp_path, char)


@pytest.fixture
def refused(tmp_path, run):
    """One line with these words, exit code 2, and no run."""

    def check(path, *words):
        found = run("import", path, "--runs-dir", tmp_path / "runs")
        assert found.code == 2 and len(found.lines) == 1, found.err
        for word in words:
            assert word in found.lines[0], found.lines[0]
        assert not list((tmp_path / "runs").glob("*/config.toml"))

    return check


def parts_of(folder: Path, n_parts: int = 2) -> list[Path]:
    """Divides the weights, as is done with large ones, and leaves the index out."""
    whole = folder / "model.safetensors"
    weights = load_file(whole)
    whole.unlink()
    paths = []
    for i in range(n_parts):
        paths.append(folder / f"model-{i + 1:05d}-of-{n_parts:05d}.safetensors")
        save_file({name: weights[name] for name in sorted(weights)[i::n_parts]}, paths[-1])
    return paths


class TestParts:
    def test_without_an_index(self, theirs, tmp_path):
        """transformers wants one; all parts together say the same."""
        parts_of(theirs)
        load_model(import_huggingface(theirs, tmp_path / "runs"))

    def test_a_missing_part_is_named(self, theirs, refused):
        first, second = parts_of(theirs)
        second.unlink()
        refused(theirs, "model-00002-of-00002.safetensors is missing")
        names = {name: first.name for name in load_file(first)}
        edit_json(theirs / INDEX, weight_map={**names, "model.norm.weight": second.name})
        refused(theirs, "model-00002-of-00002.safetensors is missing")

    def test_parts_of_two_models(self, theirs, refused):
        parts_of(theirs)
        shutil.copy(theirs / "config.json", theirs / "other-00001-of-00003.safetensors")
        refused(theirs, "parts of several models")

    def test_one_file_goes_before_an_index(self, theirs, tmp_path):
        """As in transformers."""
        edit_json(theirs / INDEX, weight_map={"a": "gone.safetensors"})
        load_model(import_huggingface(theirs, tmp_path / "runs"))


class TestPlaces:
    def test_a_folder_with_the_one_folder_in_it(self, theirs, tmp_path):
        (tmp_path / "downloads" / "notes").mkdir(parents=True)
        theirs.rename(tmp_path / "downloads" / "inner")
        run = import_huggingface(tmp_path / "downloads", tmp_path / "runs")
        assert run.name == "downloads"

    def test_several_are_listed(self, theirs, tmp_path, refused):
        for name in ("one", "two"):
            shutil.copytree(theirs, tmp_path / "models" / name)
        refused(tmp_path / "models", "2 models", "one", "two")

    @pytest.mark.parametrize("below", ["", "snapshots", "snapshots/abc"])
    def test_the_cache_of_the_hub(self, theirs, tmp_path, below):
        """Its files are links, and the name is that of the model, not the snapshot's."""
        cache = tmp_path / "hub" / "models--owner--small-model"
        for place in (cache / "blobs", cache / "snapshots" / "abc", cache / "refs"):
            place.mkdir(parents=True)
        shutil.copytree(theirs, cache / "snapshots" / "old")
        (cache / "refs" / "main").write_text("abc", encoding="utf-8")
        for i, path in enumerate(sorted(theirs.iterdir())):
            shutil.copy(path, cache / "blobs" / str(i))
            (cache / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{i}")
        run = import_huggingface(cache / below, tmp_path / "runs")
        assert run.name == "small-model"
        assert run.checkpoints.load().metadata["imported_from"] == "small-model"

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_a_file_of_the_model(self, theirs, tmp_path, name):
        assert import_huggingface(theirs / name, tmp_path / "runs").name == theirs.name

    def test_files_of_other_kinds(self, tmp_path, refused):
        for name, *words in (
            ("a.gguf", "GGUF cannot be imported yet"),
            ("pytorch_model.bin", "pickles"),
            ("a.zip", "not the folder of a model"),
            ("alone.safetensors", "not the folder of a model"),
        ):
            (tmp_path / name).write_bytes(b"\0" * 9)
            refused(tmp_path / name, *words)

    def test_folders_of_other_kinds(self, tmp_path, theirs, refused):
        empty = tmp_path / "empty"
        empty.mkdir()
        refused(empty, "config.json is missing")
        (empty / "model.gguf").write_bytes(b"GGUF")
        refused(empty, "GGUF cannot be imported yet")
        (empty / "adapter_config.json").write_text("{}", encoding="utf-8")
        refused(empty, "adapter")
        (theirs / "model.safetensors").rename(theirs / "consolidated.safetensors")
        refused(theirs, "has no model.safetensors", "consolidated.safetensors")


class TestStandIns:
    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
    def test_pointers_of_git_lfs(self, theirs, refused, name):
        (theirs / name).write_text(POINTER, encoding="utf-8")
        refused(theirs, name, "pointer of Git LFS", "git lfs pull")

    @pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
    def test_links_that_lead_nowhere(self, theirs, refused, name):
        (theirs / name).unlink()
        (theirs / name).symlink_to("../../blobs/gone")
        refused(theirs, name, "a link to a file that is not there")

    def test_byte_order_marks(self, theirs, tmp_path):
        for path in theirs.glob("*.json"):
            path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
        load_model(import_huggingface(theirs, tmp_path / "runs"))


class TestNumbers:
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_that_are_not_finite(self, theirs, refused, value):
        weights = load_file(theirs / "model.safetensors")
        weights["model.layers.0.mlp.up_proj.weight"][3, 4] = value
        save_file(weights, theirs / "model.safetensors")
        refused(theirs, "1 of the 384 numbers of model.layers.0.mlp.up_proj.weight", "NaN")

    def test_of_a_run_that_was_imported_unchecked(self, theirs, tmp_path, run, monkeypatch):
        """One line, whatever is done with it."""
        monkeypatch.chdir(tmp_path)
        made = import_huggingface(theirs, Path("checkpoints"), "bad")
        checkpoint = made.checkpoints.load()
        checkpoint.model["ln_final.weight"][0] = float("nan")
        shutil.rmtree(made.checkpoints.folder(0))
        RunFolder(made.path).checkpoints.save(checkpoint, True, 2)
        Path("text.txt").write_text("the king rides " * 90, encoding="utf-8")
        for command in (
            "generate the --run bad",
            "evaluate text.txt --run bad",
            "export bad --to gguf",
            "export bad --to hf",
            "train text.txt --from bad --max-steps 2",
        ):
            found = run(*command.split())
            assert found.code == 3 and "Traceback" not in found.err, found.err
            assert "ln_final.weight" in found.lines[-1] and "NaN" in found.lines[-1]


def test_a_head_that_the_configuration_ties(tmp_path, bpe):
    """The files are right, as in transformers: another head is taken, an equal one is no other."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = their_folder(tmp_path, bpe, "llama", tie_weights=True)
    weights = load_file(folder / "model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    tokens = torch.arange(20)[None]
    for name, head in (("equal", embedding.clone()), ("other", embedding + 0.5)):
        save_file({**weights, "lm_head.weight": head}, folder / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        run = import_huggingface(folder, tmp_path / "runs", name)
        assert run.config.model.tie_weights == (name == "equal")
        with torch.inference_mode():
            expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
            torch.testing.assert_close(load_model(run)[0](tokens), expected, atol=1e-4, rtol=1e-4)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert settings["tie_word_embeddings"]
