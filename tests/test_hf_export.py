"""Export to Hugging Face: transformers computes the same from the same text."""

from __future__ import annotations

import sys

import pytest
from exports import LAYOUTS, NASTY, make_run

from myllm.cli import main
from myllm.config import default_config
from myllm.errors import InputError
from myllm.formats import read_back
from myllm.hf_export import export_huggingface
from myllm.hf_import import import_huggingface
from myllm.layouts import layout_of


class TestHuggingFace:
    @pytest.mark.parametrize("kind", ["bpe", "char"])
    @pytest.mark.parametrize("preset, changes", LAYOUTS, ids=str)
    def test_transformers_computes_the_same(self, tmp_path, request, preset, changes, kind):
        run = make_run(tmp_path, request.getfixturevalue(kind), preset, **changes)
        export_huggingface(run, tmp_path / "hf")
        found = read_back(run, "hf", tmp_path / "hf")
        assert found is not None
        assert found.difference <= 1e-4 and len(found.ours) == 64
        assert found.ours == found.theirs and found.equal

    @pytest.mark.parametrize("kind", ["bpe", "char"])
    def test_ids_of_nasty_strings(self, tmp_path, request, kind):
        from transformers import AutoTokenizer

        tokenizer = request.getfixturevalue(kind)
        export_huggingface(make_run(tmp_path, tokenizer), tmp_path / "hf")
        theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
        for text in NASTY:
            ids = tokenizer.encode(text)
            assert theirs(text, add_special_tokens=False)["input_ids"] == ids, repr(text)
            assert theirs.decode(ids) == tokenizer.decode(ids), repr(text)
        assert theirs.eos_token_id == tokenizer.end_of_text_id

    def test_the_folder(self, tmp_path, bpe):
        run = make_run(tmp_path, bpe)
        export_huggingface(run, tmp_path / "hf")
        names = {path.name for path in (tmp_path / "hf").iterdir()}
        assert names == {
            "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
            "tokenizer_config.json", "special_tokens_map.json", "README.md",
        }  # fmt: skip
        card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
        assert "license:" in card and "2.0000 nats per token" in card and "SHA-256 ab" in card
        assert "trained from nothing" in card
        modes = {path.stat().st_mode for path in (tmp_path / "hf").iterdir()}
        assert len(modes) == 1  # whoever may read one of them may read all

    def test_shards(self, tmp_path, bpe, monkeypatch):
        monkeypatch.setattr("myllm.hf_export.SHARD_BYTES", 60_000)
        run = make_run(tmp_path, bpe)
        export_huggingface(run, tmp_path / "hf")
        assert len(list((tmp_path / "hf").glob("model-*-of-*.safetensors"))) > 2
        found = read_back(run, "hf", tmp_path / "hf")
        assert found is not None and found.equal
        again = import_huggingface(tmp_path / "hf", tmp_path, "again")
        assert again.load().model.keys() == run.load().model.keys()

    def test_a_layout_of_nobody_is_refused_by_name(self, tmp_path, bpe):
        run = make_run(tmp_path, bpe, "modern", norm="layernorm")
        with pytest.raises(InputError, match="qwen3, but for norm 'layernorm'"):
            export_huggingface(run, tmp_path / "hf")
        assert not (tmp_path / "hf").exists()

    def test_presets_are_known(self):
        found = {preset: layout_of(default_config(preset).model) for preset in ("gpt2", "modern")}
        assert {family.architecture for family in found.values()} == {
            "GPT2LMHeadModel",
            "Qwen3ForCausalLM",
        }


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("preset", ["modern", "gpt2"])
def test_memory(tmp_path, preset):
    """A large model is exported in its own size, and what the program takes for itself."""
    from export_memory import ROADS, exported, make_run

    itself = 5e8
    for export in exported(make_run(tmp_path, 3e8, preset), ROADS):
        assert export.peak < 1.15 * export.weights + itself, export


def test_commands(tmp_path, monkeypatch, bpe, capsys):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "checkpoints", bpe)
    assert main(["export", "run", "--out", "there"]) == 0
    out = capsys.readouterr().out
    assert "there: written" in out and "64 tokens written greedily are the same" in out
    assert main(["export", "run", "--out", "there"]) == 2
    assert main(["import", "there", "--run", "back"]) == 0
    assert main(["generate", "the", "--run", "back", "--max-new-tokens", "3"]) == 0
    for command in ("train --resume back", "evaluate --run back", "inspect-batch back 3"):
        capsys.readouterr()
        assert main(command.split()) == 2
        assert "--from RUN" in capsys.readouterr().err
