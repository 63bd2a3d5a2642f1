"""Import from Hugging Face: the same numbers and back; damaged and malicious folders."""

from __future__ import annotations

import json
import pickle
import struct
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from exports import TEXT, engine_of
from safetensors.torch import load_file, save_file

from myllm.cli import main
from myllm.config import SamplingConfig
from myllm.errors import InputError
from myllm.formats.gguf import export_gguf
from myllm.formats.hf_export import export_huggingface
from myllm.formats.hf_import import import_huggingface
from myllm.formats.hf_tokenizer import read_tokenizer
from myllm.generate import TextGenerator
from myllm.generate.characters import Characters
from myllm.runs.weights import load_model
from myllm.tokenizer import Tokenizer


class TestImport:
    @pytest.mark.parametrize("name", ["gpt2", "llama", "llama3", "qwen3"])
    def test_computes_the_same_and_goes_back_equal(self, tmp_path, foreign, name):
        from transformers import AutoModelForCausalLM

        folder = foreign(name)
        run = import_huggingface(folder, tmp_path, "in")
        model, _, _ = load_model(run)
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
        tokens = torch.randint(311, (2, 96), generator=torch.Generator().manual_seed(3))
        with torch.inference_mode():
            torch.testing.assert_close(model(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
        export_huggingface(run, tmp_path / "back")
        card = (tmp_path / "back" / "README.md").read_text(encoding="utf-8")
        assert f"imported from {folder.name}" in card and "steps" not in card
        ours, original = (
            load_file(path / "model.safetensors") for path in (tmp_path / "back", folder)
        )
        assert ours.keys() == original.keys()
        assert all(torch.equal(ours[name], original[name]) for name in original)

    def test_untied_where_the_file_does_not_say(self, tmp_path, foreign):
        """As transformers reads a Llama or Qwen3 configuration that leaves it out."""
        folder = foreign("llama")
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        settings.pop("tie_word_embeddings", None)
        (folder / "config.json").write_text(json.dumps(settings), encoding="utf-8")
        assert not import_huggingface(folder, tmp_path, "in").config.model.tie_weights

    def test_published_gpt2(self, tmp_path, foreign):
        """Its names lack the prefix, and it has masks among the weights."""
        folder = foreign("gpt2")
        weights = load_file(folder / "model.safetensors")
        renamed = {name.removeprefix("transformer."): t for name, t in weights.items()}
        for i in range(3):
            renamed[f"h.{i}.attn.bias"] = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
            renamed[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})
        run = import_huggingface(folder, tmp_path, "in")
        export_huggingface(run, tmp_path / "back")
        back = load_file(tmp_path / "back" / "model.safetensors")
        assert back.keys() == weights.keys()
        assert all(torch.equal(back[name], weights[name]) for name in back)

    def test_bfloat16_stays(self, tmp_path, foreign):
        run = import_huggingface(foreign("qwen3", torch.bfloat16), tmp_path, "in")
        assert {t.dtype for t in run.checkpoints.load().model.values()} == {torch.bfloat16}
        assert load_model(run)[0].token_embedding.weight.dtype == torch.bfloat16

    def test_sentencepiece_like_tokenizer(self, tmp_path):
        path = tmp_path / "tokenizer.json"
        path.write_text(engine_of("sentencepiece").to_str(), encoding="utf-8")
        tokenizer = read_tokenizer(tmp_path, {})
        assert tokenizer.eos_token == "</s>"
        for text in ("a the", " b你 a", "<s>"):
            assert tokenizer.decode(tokenizer.encode(text)) == text
        assert len(tokenizer.encode("<0xZZ>")) > 1  # looks like a byte, and is none
        tokenizer.save(tmp_path / "saved.json")
        assert Tokenizer.load(tmp_path / "saved.json").content_hash == tokenizer.content_hash

    def test_what_stands_before_a_text_and_the_chat_template(self, tmp_path, foreign):
        """Both go in and out, and a model writes after what its own program puts first."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        folder = foreign("llama", engine=engine_of("llama-bpe"))
        template = "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        settings = {"eos_token": "<|end|>", "chat_template": template}
        (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
        run = import_huggingface(folder, tmp_path, "in")
        begin = run.tokenizer.prefix_ids
        assert len(begin) == 1 and run.tokenizer.eos_token == "<|end|>"
        export_huggingface(run, tmp_path / "back")
        theirs = AutoTokenizer.from_pretrained(tmp_path / "back")
        assert theirs.bos_token_id == begin[0] and theirs.eos_token == "<|end|>"
        ids = theirs("the king")["input_ids"]
        assert ids == begin + run.tokenizer.encode("the king")
        chat = [{"role": "user", "content": "hello"}]
        assert theirs.apply_chat_template(chat, tokenize=False) == "[user] hello"
        model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "back")
        generator = TextGenerator.from_run(str(run.path))
        characters = Characters(run.tokenizer, run.config.model.vocab_size)

        def whole_characters(read, scores):  # of random weights few are
            return characters.masked(scores, characters.state_after(read[0].tolist()))

        written = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=20, eos_token_id=None,
            logits_processor=[whole_characters],
        )  # fmt: skip
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=20, ignore_end=True)
        ours = generator.stream_ids(generator.encode_prompt("the king"), sampling)
        assert list(ours) == written[0, len(ids) :].tolist()
        import gguf

        export_gguf(run, tmp_path / "model.gguf")
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        assert reader.fields["tokenizer.chat_template"].contents() == template
        assert reader.fields["tokenizer.ggml.bos_token_id"].contents() == begin[0]
        assert reader.fields["tokenizer.ggml.add_bos_token"].contents() is True
        modelfile = (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
        assert "TEMPLATE" not in modelfile and 'stop "<|end|>"' in modelfile

    def test_train_begins_where_evaluation_says(self, tmp_path, monkeypatch, bpe, capsys):
        monkeypatch.chdir(tmp_path)
        Path("text.txt").write_text(TEXT * 3, encoding="utf-8")
        flags = "--d-model 16 --n-layers 1 --n-heads 2 --context-length 16 --max-steps 12 --run a"
        assert main(["train", "text.txt", "--dtype", "float32", *flags.split()]) == 0
        capsys.readouterr()
        assert main(["evaluate", "--run", "a"]) == 0
        loss = capsys.readouterr().out.split("loss ")[1].split()[0]
        command = "train text.txt --from a --max-steps 2 --dtype float32 --run b"
        assert main(command.split()) == 0
        out, err = capsys.readouterr()
        assert f"begun with the model of a: validation loss {loss}" in err
        assert main(["generate", "the", "--run", "b", "--max-new-tokens", "3"]) == 0


class TestBadInput:
    """Malicious and damaged folders: one line, soon, and nothing is executed."""

    def refused(self, folder: Path, tmp_path: Path, *words: str) -> None:
        began = time.monotonic()
        with pytest.raises(InputError) as caught:
            import_huggingface(folder, tmp_path / "runs", "bad")
        assert time.monotonic() - began < 2
        for word in words:
            assert word in str(caught.value), caught.value
        assert not (tmp_path / "runs" / "bad").exists()

    def test_pickles(self, tmp_path, foreign):
        folder = foreign("qwen3")
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))
        self.refused(folder, tmp_path, "pickles", "safetensors")

    def test_a_pickle_by_another_name(self, tmp_path, foreign):
        folder = foreign("qwen3")
        (folder / "model.safetensors").write_bytes(pickle.dumps({"a": print}))
        self.refused(folder, tmp_path, "weights")

    def test_a_zip_bomb_by_another_name(self, tmp_path, foreign):
        folder = foreign("qwen3")
        with zipfile.ZipFile(folder / "model.safetensors", "w", zipfile.ZIP_DEFLATED) as bomb:
            bomb.writestr("data.pkl", b"\0" * (1 << 24))
        self.refused(folder, tmp_path, "weights")

    @pytest.mark.parametrize(
        "header",
        [
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 80_000_000_000]}},
            {"a": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
            {"a": {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]}},
            {"a": {"dtype": "F32", "shape": [1 << 60, 1 << 60], "data_offsets": [0, 8]}},
            {
                "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                "b": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
            },
        ],
    )
    def test_headers(self, tmp_path, foreign, header):
        folder = foreign("qwen3")
        text = json.dumps(header).encode()
        content = struct.pack("<Q", len(text)) + text + b"\0" * 16
        (folder / "model.safetensors").write_bytes(content)
        self.refused(folder, tmp_path, "weights")

    @pytest.mark.parametrize("size", [10**11, 10**8])
    def test_large_headers(self, tmp_path, foreign, size):
        """One that is announced only, and one that is there."""
        folder = foreign("qwen3")
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        header = content[8 : 8 + n].rstrip()
        if size < 10**9:
            header = header[:-1] + b',"__metadata__":{"a":"' + b"x" * size + b'"}}'
        path.write_bytes(struct.pack("<Q", max(size, len(header))) + header + content[8 + n :])
        self.refused(folder, tmp_path, "table of contents")

    def test_names_that_come_twice(self, tmp_path, foreign):
        folder = foreign("qwen3")
        path = folder / "model.safetensors"
        content = path.read_bytes()
        (n,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + n])
        name = next(name for name in header if name != "__metadata__")
        entry = json.dumps({name: header[name]})[1:]
        text = (json.dumps(header)[:-1] + ", " + entry).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + n :])
        self.refused(folder, tmp_path, "twice")

    @pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float64, torch.complex64])
    def test_wrong_dtypes(self, tmp_path, foreign, dtype):
        folder = foreign("qwen3")
        weights = load_file(folder / "model.safetensors")
        wrong = {name: tensor.to(dtype) for name, tensor in weights.items()}
        save_file(wrong, folder / "model.safetensors")
        self.refused(folder, tmp_path, "is stored as")

    def test_a_chat_template_is_not_run(self, tmp_path, foreign):
        """It is a text that goes along, whatever it says."""
        folder = foreign("qwen3")
        path = tmp_path / "executed"
        template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
        template += "{% for x in range(10**9) %}a{% endfor %}"
        template += f"{{{{ cycler.__init__.__globals__.os.system('touch {path}') }}}}"
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        began = time.monotonic()
        run = import_huggingface(folder, tmp_path, "in")
        TextGenerator.from_run(str(run.path)).generate("a", SamplingConfig(max_new_tokens=1))
        export_huggingface(run, tmp_path / "back")
        assert time.monotonic() - began < 5 and not path.exists()
        settings = json.loads((tmp_path / "back" / "tokenizer_config.json").read_text("utf-8"))
        assert settings["chat_template"] == template

    @pytest.mark.parametrize(
        "setting, value, word",
        [
            ("hidden_size", 4096, "config.json it should be"),
            ("num_hidden_layers", 999, "3 layers"),
            ("num_hidden_layers", 10**9, "n_layers"),
            ("vocab_size", "many", "vocab_size"),
            ("num_attention_heads", 0, "config.json"),
            ("hidden_act", "gelu", "hidden_act"),
            ("model_type", "mamba", "mamba"),
            ("rope_parameters", {"rope_type": "yarn", "factor": 2}, "yarn"),
        ],
    )
    def test_a_config_that_lies(self, tmp_path, foreign, setting, value, word):
        folder = foreign("qwen3")
        path = folder / "config.json"
        settings = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**settings, setting: value}), encoding="utf-8")
        self.refused(folder, tmp_path, word)

    def test_an_index_that_leaves_the_folder(self, tmp_path, foreign):
        folder = foreign("qwen3")
        (folder / "model.safetensors").unlink()
        where = {"weight_map": {"a": "../../secret.safetensors"}}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(where), encoding="utf-8")
        self.refused(folder, tmp_path, "outside of its folder")

    def test_a_foreign_tensor(self, tmp_path, foreign):
        folder = foreign("qwen3")
        weights = load_file(folder / "model.safetensors")
        save_file({**weights, "model.extra": torch.ones(2)}, folder / "model.safetensors")
        self.refused(folder, tmp_path, "model.extra does not belong")

    @pytest.mark.parametrize(
        "content", ["[]", "{", '{"model": {"type": "Unigram"}}', "[" * 99_999]
    )
    def test_tokenizers(self, tmp_path, foreign, content):
        folder = foreign("qwen3")
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        self.refused(folder, tmp_path, "tokenizer.json")

    def test_no_such_folder(self, tmp_path, capsys):
        assert main(["import", str(tmp_path / "nothing")]) == 2
        assert "not a folder" in capsys.readouterr().err
