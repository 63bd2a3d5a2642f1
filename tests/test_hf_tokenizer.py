"""What a Hugging Face folder says of its tokenizer, in whichever of its files: read as meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from exports import NASTY, TEXT, edit_json, engine_of, their_folder
from tokenizers import Tokenizer as Engine

from myllm.config import SamplingConfig
from myllm.errors import InputError
from myllm.formats.gguf import export_gguf
from myllm.formats.hf_export import export_huggingface
from myllm.formats.hf_import import import_huggingface
from myllm.formats.hf_tokenizer import read_tokenizer
from myllm.generate import TextGenerator
from myllm.tokenizer import Tokenizer

SAYING = ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")


@pytest.fixture
def theirs(tmp_path, bpe) -> Path:
    """A folder where no file says what ends a text."""
    folder = their_folder(tmp_path, bpe)
    for name in SAYING:
        (folder / name).unlink()
    edit_json(folder / "config.json", "eos_token_id", "bos_token_id")
    return folder


def settings_of(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))


def as_pairs(folder: Path, engine: Engine) -> Path:
    """The folder with `vocab.json` and `merges.txt` in place of `tokenizer.json`."""
    model = json.loads(engine.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    return folder


class TestPairs:
    """`vocab.json` and `merges.txt`, as the first GPT-2 and Qwen have them."""

    @pytest.mark.parametrize(
        "kind, tokenizer_class, more",
        [
            ("gpt2", None, {}),
            ("gpt2", "GPT2TokenizerFast", {"add_prefix_space": True}),
            ("gpt2", "GPT2Tokenizer", {"add_bos_token": True, "bos_token": "<|begin|>"}),
            ("qwen3", "Qwen2Tokenizer", {}),
        ],
    )
    def test_ids_are_those_of_transformers(self, theirs, kind, tokenizer_class, more):
        from transformers import AutoTokenizer

        as_pairs(theirs, engine_of("gpt-2"))
        edit_json(theirs / "config.json", model_type=kind)
        edit_json(theirs / "tokenizer_config.json", eos_token="<|end|>", **more)
        if tokenizer_class:
            edit_json(theirs / "tokenizer_config.json", tokenizer_class=tokenizer_class)
        ours = read_tokenizer(theirs, settings_of(theirs))
        loaded = AutoTokenizer.from_pretrained(theirs)
        assert ours.eos_token == "<|end|>" and ours.eos_token_id == loaded.eos_token_id
        assert ours.prefix_ids == ([loaded.bos_token_id] if "add_bos_token" in more else [])
        for text in [*NASTY, TEXT]:
            if not any(name in text for name in ("<|endoftext|>", "<|begin|>", "<|end|>")):
                ids = loaded(text, add_special_tokens=False)["input_ids"]
                assert ours.encode(text) == ids, repr(text)

    def test_tokens_beside_the_vocabulary_keep_their_ids(self, theirs, tmp_path, bpe):
        as_pairs(theirs, bpe.to_engine())
        edit_json(theirs / "config.json", model_type="gpt2")
        n = bpe.vocab_size
        edit_json(theirs / "added_tokens.json", **{"<|im_end|>": n + 3})
        decoder = {str(n + 1): {"content": "<|end|>", "special": True}}
        edit_json(
            theirs / "tokenizer_config.json", eos_token="<|end|>", added_tokens_decoder=decoder
        )
        tokenizer = read_tokenizer(theirs, {"eos_token_id": [n + 3], "model_type": "gpt2"})
        assert tokenizer.end_ids == (n + 1, n + 3) and tokenizer.vocab_size == n + 4
        assert tokenizer.ids_without_token(n + 4) == [n, n + 2]
        assert tokenizer.decode(tokenizer.encode("<|end|> the king")) == "<|end|> the king"

    def test_of_a_tokenizer_that_cuts_otherwise(self, theirs, bpe):
        as_pairs(theirs, bpe.to_engine())
        with pytest.raises(InputError, match="GPT2Tokenizer, Qwen2Tokenizer are"):
            read_tokenizer(theirs, {"model_type": "llama"})
        (theirs / "merges.txt").write_text("no such pair\n", encoding="utf-8")
        with pytest.raises(InputError, match="no byte pairs"):
            read_tokenizer(theirs, {"model_type": "gpt2"})

    def test_of_a_vocabulary_of_millions(self, theirs):
        """As large a file as an export of such a tokenizer is."""
        path = theirs / "tokenizer.json"
        before = read_tokenizer(theirs, settings_of(theirs)).content_hash
        path.write_bytes(path.read_bytes() + b" " * (65 << 20))
        assert read_tokenizer(theirs, settings_of(theirs)).content_hash == before

    @pytest.mark.parametrize("name", [None, "tokenizer.model", "merges.txt"])
    def test_no_tokenizer(self, theirs, name):
        (theirs / "tokenizer.json").unlink()
        if name:
            (theirs / name).write_bytes(b"\x0a\x05")
        with pytest.raises(InputError, match=f"no tokenizer.json.*{name or ''}.*save_pretrained"):
            read_tokenizer(theirs, {"model_type": "llama"})


class TestEnds:
    @pytest.mark.parametrize(
        "file, setting",
        [
            ("tokenizer_config.json", {"eos_token": "<|end|>"}),
            ("tokenizer_config.json", {"eos_token": {"content": "<|end|>", "lstrip": False}}),
            ("special_tokens_map.json", {"eos_token": "<|end|>"}),
            ("special_tokens_map.json", {"eos_token": {"content": "<|end|>"}}),
            ("generation_config.json", {"eos_token_id": 1}),
            ("generation_config.json", {"eos_token_id": [1]}),
            ("config.json", {"eos_token_id": 1}),
            ("config.json", {"eos_token_id": [1]}),
        ],
    )
    def test_named_in_any_file(self, theirs, file, setting):
        (theirs / "tokenizer.json").write_text(engine_of("gpt-2").to_str(), encoding="utf-8")
        edit_json(theirs / file, **setting)
        tokenizer = read_tokenizer(theirs, settings_of(theirs))
        assert tokenizer.end_ids == (1,) and tokenizer.token_bytes(1) == b""

    def test_an_ordinary_token_is_none(self, theirs, caplog):
        """The default of a class, as a configuration that nobody thought of has it."""
        edit_json(theirs / "config.json", eos_token_id=[2, 9_999])
        tokenizer = read_tokenizer(theirs, settings_of(theirs))
        assert tokenizer.eos_token == "<|endoftext|>" and len(tokenizer.end_ids) == 1
        assert "eos_token_id 2 is the text" in caplog.text
        assert "eos_token_id 9999 is no token" in caplog.text

    def test_each_of_several_ends_a_text(self, theirs, tmp_path):
        (theirs / "tokenizer.json").write_text(engine_of("gpt-2").to_str(), encoding="utf-8")
        edit_json(theirs / "tokenizer_config.json", eos_token="<|end|>")
        edit_json(theirs / "generation_config.json", eos_token_id=[0, 1])
        run = import_huggingface(theirs, tmp_path, "in")
        assert run.tokenizer.end_ids == (1, 0)
        generator = TextGenerator.from_run(str(run.path))
        endless = SamplingConfig(max_new_tokens=9, temperature=0.0, ignore_end=True)
        generator.model.lm_head.weight.data.zero_()  # all alike: the first id, the second end
        assert list(generator.stream_ids([5], endless)) == [0] * 9
        assert list(generator.stream_ids([5], SamplingConfig(temperature=0.0))) == []
        self.go_out(run, tmp_path)

    def go_out(self, run, tmp_path):
        """They are in what is saved and exported; without them the content is as it was."""
        saved = json.loads((run.path / "tokenizer.json").read_text(encoding="utf-8"))
        assert saved.pop("more_ends") == [0]
        (tmp_path / "older.json").write_text(json.dumps(saved), encoding="utf-8")
        assert Tokenizer.load(tmp_path / "older.json").end_ids == (1,)
        export_huggingface(run, tmp_path / "hf")
        for name in ("config.json", "generation_config.json"):
            content = json.loads((tmp_path / "hf" / name).read_text(encoding="utf-8"))
            assert content["eos_token_id"] == [1, 0]
        assert import_huggingface(tmp_path / "hf", tmp_path, "again").tokenizer.end_ids == (1, 0)
        import gguf

        export_gguf(run, tmp_path / "model.gguf")
        fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
        assert fields["tokenizer.ggml.eot_token_id"].contents() == 0
        modelfile = (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
        assert 'stop "<|end|>"' in modelfile and 'stop "<|begin|>"' in modelfile


@pytest.mark.parametrize(
    "file, content, expected",
    [
        ("tokenizer_config.json", {"chat_template": "one"}, "one"),
        ("tokenizer_config.json", {"chat_template": {"default": "D", "rag": "R"}}, "D"),
        (
            "tokenizer_config.json",
            {"chat_template": [{"name": "default", "template": "D"}, {"name": "rag"}]},
            "D",
        ),
        ("tokenizer_config.json", {"chat_template": [{"name": "x", "template": "X"}]}, "X"),
        ("tokenizer_config.json", {"chat_template": {"rag": "R", "tools": "T"}}, None),
        ("tokenizer_config.json", {"chat_template": 5}, None),
        ("chat_template.json", {"chat_template": "J"}, "J"),
        ("chat_template.jinja", "\ufeffinja", "inja"),
        ("additional_chat_templates/default.jinja", "D", "D"),
        ("additional_chat_templates/rag.jinja", "R", None),
    ],
)
def test_chat_templates(theirs, file, content, expected):
    (theirs / file).parent.mkdir(exist_ok=True)
    text = content if isinstance(content, str) else json.dumps(content)
    (theirs / file).write_text(text, encoding="utf-8")
    assert read_tokenizer(theirs, {}).chat_template == expected
