"""Ids without a token, which a padded vocabulary and one with holes have: never drawn."""

from __future__ import annotations

import dataclasses
import json

import gguf
import pytest
import torch
from exports import TEXT, edit_json, their_folder
from safetensors.torch import load_file, save_file

from myllm.cli import main
from myllm.config import SamplingConfig
from myllm.formats import export
from myllm.formats.hf_import import import_huggingface
from myllm.generate import TextGenerator
from myllm.tokenizer import Tokenizer

N_PADDED = 64
GREEDY = SamplingConfig(max_new_tokens=40, temperature=0.0, ignore_end=True)
DRAWN = dataclasses.replace(GREEDY, temperature=1.5, top_p=None, sample_seed=1)


@pytest.fixture
def padded(tmp_path, bpe):
    """A run whose model would rather write ids that its tokenizer lacks."""
    folder = their_folder(tmp_path, bpe, tie_weights=False)
    edit_json(folder / "config.json", vocab_size=bpe.vocab_size + N_PADDED)
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        rows = 2 * torch.randn(N_PADDED, 16, generator=torch.Generator().manual_seed(4))
        weights[name] = torch.cat((weights[name], rows))
    save_file(weights, folder / "model.safetensors")
    return import_huggingface(folder, tmp_path / "checkpoints", "padded")


@pytest.mark.parametrize(
    "sampling",
    [
        GREEDY,
        DRAWN,
        dataclasses.replace(DRAWN, top_k=400),
        dataclasses.replace(DRAWN, min_p=0.01, repetition_penalty=2.0),
    ],
)
def test_generation_draws_no_such_id(padded, sampling):
    generator = TextGenerator.from_run(str(padded.path))
    logits = generator.model(torch.tensor([generator.encode_prompt("the king")]))
    assert logits[0, -1].argmax() >= generator.tokenizer.vocab_size  # it would, if it might
    ids = list(generator.stream_ids(generator.encode_prompt("the king"), sampling))
    assert len(ids) == 40 and max(ids) < generator.tokenizer.vocab_size
    shown = generator.tokenizer.decode(ids).rstrip("\ufffd")  # a last character may be unfinished
    assert generator.generate("the king", sampling) == shown


def test_probabilities_are_of_tokens(padded):
    found = TextGenerator.from_run(str(padded.path)).next_probabilities("the king", k=10_000)
    assert len(found) == padded.tokenizer.vocab_size
    assert sum(p for _, p in found) == pytest.approx(1, abs=1e-4)


def test_measured_and_trained_on(padded, folder, run):
    (folder / "text.txt").write_text(TEXT, encoding="utf-8")
    assert "bits per byte" in run("evaluate", "text.txt", "--run", "padded").out
    command = "train text.txt --from padded --run more --max-steps 2 --dtype float32"
    assert main(command.split()) == 0
    assert run("generate", "the", "--run", "more", "--max-new-tokens", 20).code == 0


@pytest.mark.parametrize("name", ["hf", "gguf", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_keep_the_shape(padded, tmp_path, run, name):
    """llama.cpp wants a name for each row; its greedy text is compared among real tokens."""
    out = tmp_path / "out"
    found = export(padded, name, out).compared
    assert found is not None and found.equal
    assert max(found.ours) < padded.tokenizer.vocab_size
    if name == "gguf":
        names = gguf.GGUFReader(out).fields["tokenizer.ggml.tokens"].contents()
        assert len(names) == len(set(names)) == padded.config.model.vocab_size
    made = run("export", padded.path, "--to", name, "--out", tmp_path / "again")
    assert made.code == 0 and "are the same" in made.out


def test_ids_with_holes(tmp_path, bpe):
    """Where a tokenizer's ids are not 0, 1, 2, … the missing ones stand for nothing."""
    folder = their_folder(tmp_path, bpe, vocab_size=bpe.vocab_size + 5)
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    last = bpe.vocab_size - 1
    moved = {id: id + 5 if id == last else id for id in range(bpe.vocab_size)}
    vocab = {name: moved[id] for name, id in content["model"]["vocab"].items()}
    content["model"]["vocab"] = vocab
    for token in content["added_tokens"]:
        token["id"] = moved[token["id"]]
    (folder / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    run = import_huggingface(folder, tmp_path, "in")
    tokenizer = run.tokenizer
    assert tokenizer.vocab_size == run.config.model.vocab_size == last + 6
    assert tokenizer.ids_without_token(last + 8) == [*range(last, last + 5), last + 6, last + 7]
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.byte_counts()[last : last + 5].sum() == 0
    ids = list(TextGenerator.from_run(str(run.path)).stream_ids([1, 2], DRAWN))
    assert not set(ids) & set(range(last, last + 5))
    for name in ("hf", "gguf"):
        found = export(run, name, tmp_path / name).compared
        assert found is not None and found.equal


def test_ids_without_end(tmp_path, bpe):
    """A file may claim any id; as many as a model may have are believed."""
    content = {"kind": "imported", "end_of_text": "b", "content": {}}
    content["content"] = {
        "model": {"type": "BPE", "vocab": {"a": 4 * 10**9, "b": 0}, "merges": []}
    }
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="its ids go up to 4,000,000,000"):
        Tokenizer.load(path)
