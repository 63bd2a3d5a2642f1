"""Export and import: other programs compute the same from the same text, and back."""

from __future__ import annotations

import dataclasses
import json
import json.decoder
import math
import pickle
import struct
import sys
import time
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Regex
from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from myllm.checkpoint import Checkpoint
from myllm.cli import main
from myllm.config import RunConfig, SamplingConfig
from myllm.device import host_copies
from myllm.errors import ConfigError, InputError
from myllm.formats import export, read_back
from myllm.generate import TextGenerator
from myllm.gguf_export import export_gguf
from myllm.hf_export import export_huggingface
from myllm.hf_import import import_huggingface
from myllm.imported_tokenizer import ImportedTokenizer
from myllm.layouts import layout_of
from myllm.model import GPTModel
from myllm.onnx_folder import export_onnx
from myllm.presets import default_config
from myllm.readers import with_llama_cpp, with_myllm
from myllm.run_folder import RunFolder
from myllm.state import TrainState
from myllm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from myllm.weights import load_model, model_tensors

NASTY = [
    "你好，世界", "नमस्ते दुनिया", "👩‍👩‍👧‍👦 family 🏳️‍🌈", "e\u0301 n\u0303 Å", "a\tb\t\t c",
    "     runs   of  ", "line\r\nnext\r\n\r\n", "0123456789 3.14 1,000,000",
    "<|endoftext|> <|im_start|> </s> <unk> <s>", "", "\n\n\n", "don't we'll I'M",
    "\u200bzero\ufeff", "ﬁ ligature ½ ﷺ", "\x07bell",
]  # fmt: skip
PAGE = Path(json.decoder.__file__).read_text(encoding="utf-8")  # a text that is at hand
TEXT = "the king rides to the old city, and sings of the river: 你好 naïve 12.\n" * 30


def make_run(folder: Path, tokenizer: Tokenizer, preset: str = "modern", **changes) -> RunFolder:
    """A run of a small random model, saved as training would."""
    shape: dict[str, Any] = dict(
        context_length=128, d_model=48, n_layers=3, n_heads=6, d_ff=80, dropout=0.0
    )
    model_config = dataclasses.replace(
        default_config(preset).model, vocab_size=tokenizer.vocab_size, **{**shape, **changes}
    )
    torch.manual_seed(1)
    model = GPTModel(model_config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    run = RunFolder.create(folder, "run", RunConfig(preset=preset, model=model_config), tokenizer)
    state = {"progress": TrainState(best_loss=2.0, best_bits_per_byte=1.0).to_json(), "scaler": {}}
    weights = host_copies(model_tensors(model))
    run.checkpoints.save(
        Checkpoint(7, weights, {}, state, {"text": "ab"}, run.small_files()), True, 2
    )
    return run


@pytest.fixture
def bpe() -> BPETokenizer:
    return BPETokenizer(300).train(TEXT)


@pytest.fixture
def char() -> CharTokenizer:
    return CharTokenizer().train(TEXT)


LAYOUTS = [
    ("gpt2", {}), ("gpt2", {"tie_weights": False}), ("modern", {}),
    ("modern", {"n_kv_heads": 2}), ("modern", {"tie_weights": False, "head_dim": 10}),
    ("llama", {}), ("llama", {"n_kv_heads": 3}), ("llama", {"tie_weights": True}),
    ("llama", {"rope_factor": 8.0, "rope_original_context": 32, "rope_theta": 500.0}),
]  # fmt: skip


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
        assert theirs.eos_token_id == tokenizer.eos_token_id

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
        assert again.checkpoints.load().model.keys() == run.checkpoints.load().model.keys()

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


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run for each kind of tokenizer, trained for a moment on one text."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "page.txt"
    text.write_text(PAGE, encoding="utf-8")
    flags = (
        f"--out {folder} --data-dir {folder / 'data'} --d-model 64 --n-layers 2 --n-heads 4 "
        "--d-ff 96 --context-length 512 --batch-size 1 --max-steps 60 --vocab-size 400"
    )
    runs = {}
    for kind in ("bpe", "char"):
        command = ["train", str(text), "--tokenizer", kind, "--run", kind, *flags.split()]
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
        import gguf

        run = make_run(tmp_path, bpe)
        export_gguf(run, tmp_path / "model.gguf", {"quantize": "f16"})
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        assert reader.get_field("general.architecture").contents() == "qwen3"
        assert len(reader.get_field("tokenizer.ggml.tokens").contents()) == bpe.vocab_size
        assert {tensor.name for tensor in reader.tensors} >= {
            "token_embd.weight",
            "blk.2.ffn_up.weight",
        }
        modelfile = (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
        assert "FROM ./model.gguf" in modelfile and 'stop "<|endoftext|>"' in modelfile

    def test_stretched_positions_of_a_layout_that_has_none(self, tmp_path, bpe):
        run = make_run(tmp_path, bpe, "modern", rope_factor=4.0, rope_original_context=32)
        with pytest.raises(InputError, match="in the llama layout only, and this is qwen3"):
            export_gguf(run, tmp_path / "model.gguf")
        export_huggingface(run, tmp_path / "hf")
        found = read_back(run, "hf", tmp_path / "hf")
        assert found is not None and found.equal

    def test_rows_that_blocks_do_not_fill(self, tmp_path, bpe):
        """48 is no multiple of the 32 numbers of a block: those matrices are kept in f16."""
        import gguf

        run = make_run(tmp_path, bpe, d_ff=96)
        export_gguf(run, tmp_path / "model.gguf", {"quantize": "q8_0"})
        tensors = gguf.GGUFReader(tmp_path / "model.gguf").tensors
        kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
        assert kinds["blk.0.ffn_up.weight"] == "F16" and kinds["blk.0.ffn_down.weight"] == "Q8_0"
        assert kinds["output_norm.weight"] == "F32"

    @pytest.mark.parametrize(
        "quantization, within",
        [
            ("f32", 1e-5), ("f16", 1e-3), ("bf16", 1e-2), ("q8_0", 1e-2), ("q5_1", 0.05),
            ("q5_0", 0.05), ("q4_1", 0.1), ("q4_0", 0.1),
        ],  # fmt: skip
    )
    @pytest.mark.parametrize("kind", ["bpe", "char"])
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


def odd_models():
    from transformers import (
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
        Qwen3Config,
        Qwen3ForCausalLM,
    )

    rotary: dict[str, Any] = dict(
        vocab_size=311, hidden_size=36, intermediate_size=52, num_hidden_layers=3,
        num_attention_heads=6, num_key_value_heads=2, head_dim=10, max_position_embeddings=96,
    )  # fmt: skip
    llama3: dict[str, Any] = dict(
        rope_type="llama3", rope_theta=5e5, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
        original_max_position_embeddings=24,
    )  # fmt: skip
    gpt2 = GPT2Config(vocab_size=311, n_positions=96, n_embd=36, n_layer=3, n_head=6, n_inner=50)
    return {
        "gpt2": GPT2LMHeadModel(gpt2),
        "llama": LlamaForCausalLM(LlamaConfig(**rotary)),
        "llama3": LlamaForCausalLM(LlamaConfig(**rotary, rope_parameters=llama3)),
        "qwen3": Qwen3ForCausalLM(Qwen3Config(**rotary, tie_word_embeddings=True)),
    }


WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def engine_of(name: str) -> Engine:
    """A tokenizer built as those of published models are: SmolLM2, Llama 3, Qwen3, TinyLlama."""
    if name in SPACES:
        return sentencepiece_engine(name)
    engine = Engine(models.BPE())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)

    def cut(pattern: str) -> Any:
        split = pre_tokenizers.Split(Regex(pattern), "isolated")
        return pre_tokenizers.Sequence([split, parts])

    engine.pre_tokenizer = {
        "gpt-2": lambda: whole,
        "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(True), whole]),
        "llama-bpe": lambda: cut(WORDS + r"\p{N}{1,3}" + REST),
        "qwen2": lambda: cut(WORDS + r"\p{N}" + REST),
    }[name]()
    engine.decoder = decoders.ByteLevel()
    special = ["<|begin|>", "<|end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    engine.train_from_iterator([TEXT], trainer)
    if name == "qwen2":
        engine.normalizer = normalizers.NFC()
    if name == "llama-bpe":
        engine.post_processor = processors.TemplateProcessing(
            "<|begin|> $A", None, [("<|begin|>", 0)]
        )
        content = json.loads(engine.to_str())
        content["model"]["ignore_merges"] = True
        engine = Engine.from_str(json.dumps(content))
    return engine


REPLACE = normalizers.Replace(" ", "▁")
# how spaces are treated: as they are, one put before a text, and the newer way to write the first
SPACES: dict[str, tuple[Any, Any]] = {
    "sentencepiece": (REPLACE, None),
    "tinyllama": (normalizers.Sequence([normalizers.Prepend("▁"), REPLACE]), None),
    "metaspace": (None, pre_tokenizers.Metaspace("▁", "never", split=False)),
}


def sentencepiece_engine(name: str) -> Engine:
    """Pieces, the better the earlier; each is joined from any two that it consists of."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
    pieces += list("▁athekingrdsovclbf") + ["<0xZZ>"]
    pieces += ["▁t", "he", "▁a", "ing", "in", "▁the", "ki", "king", "▁king", "nd", "▁and"]
    vocab = {piece: id for id, piece in enumerate(dict.fromkeys(pieces))}
    merges = [
        (piece[:i], piece[i:])
        for piece in pieces[278:]
        for i in range(1, len(piece))
        if piece[:i] in vocab and piece[i:] in vocab
    ]
    engine = Engine(
        models.BPE(vocab, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    normalizer, pre_tokenizer = SPACES[name]
    if normalizer is not None:
        engine.normalizer = normalizer
    if pre_tokenizer is not None:
        engine.pre_tokenizer = pre_tokenizer
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    engine.add_special_tokens(["<unk>", "<s>", "</s>"])
    return engine


@pytest.fixture
def foreign(tmp_path, bpe):
    """Saves a random model of `transformers`, with a tokenizer."""

    def save(name: str, dtype: torch.dtype = torch.float32, engine: Engine | None = None) -> Path:
        torch.manual_seed(2)
        model = odd_models()[name]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        folder = tmp_path / f"their-{name}"
        model.to(dtype).save_pretrained(folder)
        text = (engine or bpe.to_engine()).to_str()
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|end|>"}) if "<|end|>" in text else "{}", encoding="utf-8"
        )
        return folder

    return save


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
        tokenizer = ImportedTokenizer.read(path)
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
        written = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=20, eos_token_id=None
        )
        sampling = SamplingConfig(temperature=0.0, max_new_tokens=20, ignore_end=True)
        generator = TextGenerator.from_run(str(run.path))
        ours = generator.stream_ids(generator.encode_prompt("the king"), sampling)
        assert list(ours) == written[0, len(ids) :].tolist()
        import gguf

        export_gguf(run, tmp_path / "model.gguf")
        reader = gguf.GGUFReader(tmp_path / "model.gguf")
        assert reader.get_field("tokenizer.chat_template").contents() == template
        assert reader.get_field("tokenizer.ggml.bos_token_id").contents() == begin[0]
        assert reader.get_field("tokenizer.ggml.add_bos_token").contents() is True
        modelfile = (tmp_path / "model.Modelfile").read_text(encoding="utf-8")
        assert "TEMPLATE" not in modelfile and 'stop "<|end|>"' in modelfile

    @pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2", *SPACES])
    def test_into_llama_cpp(self, tmp_path, foreign, name):
        """Imported models go on to GGUF: the same logits, and ids of nasty strings."""
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


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("preset", ["modern", "gpt2"])
def test_memory(tmp_path, preset):
    """A large model is exported in its own size, and what the program takes for itself."""
    from export_memory import ROADS, exported, make_run

    itself = 5e8
    for export in exported(make_run(tmp_path, 3e8, preset), ROADS):
        assert export.peak < 1.15 * export.weights + itself, export


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
        assert "no folder" in capsys.readouterr().err


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
