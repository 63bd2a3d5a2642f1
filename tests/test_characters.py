"""What is written is made of whole characters, and begins where the model knows beginnings."""

from __future__ import annotations

import dataclasses
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_place import words

from myllm import api
from myllm.config import SamplingConfig
from myllm.generate.characters import BETWEEN, BROKEN, NEXT, Characters, states_after
from myllm.generate.generator import TextGenerator
from myllm.model import GPTModel
from myllm.runs.taught import knows_beginnings
from myllm.system.atomic import sealed_folder
from myllm.tokenizer import BPETokenizer, CharTokenizer, ImportedTokenizer

TEXT = "Straße 你好，世界。 नमस्ते 👩‍👩‍👧 café naïve — the quick brown fox � 𝔘𐍈.\n" * 30
TOKENIZERS = {
    "bytes": BPETokenizer(257),
    "bpe": BPETokenizer(400).train(TEXT),
    "char": CharTokenizer().train(TEXT.replace("\N{REPLACEMENT CHARACTER}", "")),
}
SHAPE: dict[str, Any] = dict(
    d_model=16, n_layers=1, n_heads=2, context_length=16, batch_size=2, max_steps=2,
    eval_interval=1, device="cpu", dtype="float32",
)  # fmt: skip
LOUD = SamplingConfig(
    max_new_tokens=40, temperature=2.0, top_p=None, sample_seed=1, ignore_end=True
)


def babbler(tokenizer, model_config, seed=1, extra_ids=0, **settings):
    """A model of random weights."""
    torch.manual_seed(seed)
    vocab_size = tokenizer.vocab_size + extra_ids
    config = dataclasses.replace(model_config, vocab_size=vocab_size)
    return TextGenerator(GPTModel(config).eval(), tokenizer, **settings)


class TestAutomaton:
    def test_knows_each_character_and_nothing_else(self):
        """All of two bytes, of three and four those at every edge, as Python reads them."""
        edges = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF]
        three = itertools.product(range(0xE0, 0xF0), range(256), edges)
        four = itertools.product(range(0xF0, 0x100), edges, edges, edges)
        for sequence in [*itertools.product(range(256), range(256)), *three, *four]:
            data = bytes(sequence)
            state = BETWEEN
            for byte in data:
                state = int(NEXT[state, byte])
            try:
                data.decode("utf-8")
                expected = "whole"
            except UnicodeDecodeError as error:
                expected = "begun" if error.reason == "unexpected end of data" else "broken"
            found = {BETWEEN: "whole", BROKEN: "broken"}.get(state, "begun")
            assert found == expected, data

    def test_tokens_at_once_are_tokens_one_by_one(self):
        tokens = [b"", b"a", "你".encode(), "你".encode()[1:], b"\xf0\x9f", b"\x80a\xe4", b"\xff"]
        after = states_after(tokens)
        for state in range(len(NEXT)):
            for id, token in enumerate(tokens):
                expected = state
                for byte in token:
                    expected = int(NEXT[expected, byte])
                assert after[state, id] == expected


@pytest.mark.parametrize("kind", list(TOKENIZERS))
class TestWholeCharacters:
    """The law, for logits that chance has made."""

    @pytest.mark.parametrize("seed", range(3))
    def test_whatever_is_drawn(self, model_config, kind, seed):
        """A text that can be encoded again, the same as a stream; also of ids that are padding."""
        tokenizer = TOKENIZERS[kind]
        writer = babbler(tokenizer, model_config, seed, extra_ids=seed)
        for prompt, temperature in (("the fox 你", 2.0), ("", 2.0), ("é", 0.0)):
            sampling = dataclasses.replace(LOUD, sample_seed=seed, temperature=temperature)
            text = writer.generate(prompt, sampling)
            assert "".join(writer.stream(prompt, sampling)) == text
            ids = tokenizer.encode(text)
            assert tokenizer.decode(ids) == text and not tokenizer.count_unknown(np.array(ids))
            drawn = list(writer.stream_ids(writer.encode_prompt(prompt), sampling))
            assert len(drawn) == 40
            data = b"".join(map(tokenizer.token_bytes, drawn))
            assert data.decode("utf-8", "ignore").lstrip() == text.lstrip()
            assert len(data.decode("utf-8", "ignore").encode()) > len(data) - 4  # only its end

    def test_wherever_it_is_cut(self, model_config, kind):
        """A limit inside of a character shows what is whole, and more of it a longer text."""
        writer = babbler(TOKENIZERS[kind], model_config)
        texts = [
            writer.generate("fox", dataclasses.replace(LOUD, max_new_tokens=n)) for n in range(12)
        ]
        assert all(longer.startswith(text) for text, longer in itertools.pairwise(texts))
        assert not any("\ufffd" in text for text in texts)

    def test_ends_only_between_characters(self, model_config, kind):
        tokenizer = TOKENIZERS[kind]
        characters = Characters(tokenizer, tokenizer.vocab_size)
        zeros = torch.zeros(tokenizer.vocab_size)
        for state in range(1, BROKEN):
            masked = characters.masked(zeros, state)
            assert kind == "char" or masked[tokenizer.eos_token_id] == -torch.inf
        assert characters.masked(zeros, BETWEEN)[tokenizer.eos_token_id] == 0


class TestPrompts:
    def test_ids_that_end_inside_of_a_character(self, model_config):
        """The character is finished, and shown whole, as it was not before."""
        writer = babbler(TOKENIZERS["bytes"], model_config)
        for whole in ("é", "你", "👩"):
            data = whole.encode()
            for n in range(1, len(data)):
                ids = [writer.tokenizer.encode("a")[0], *(self.byte(b) for b in data[:n])]
                text = "".join(writer.stream_after(ids, LOUD))
                assert "\ufffd" not in text and text.encode()[:n] == data[:n]

    def byte(self, value):
        tokens = [TOKENIZERS["bytes"].token_bytes(id) for id in range(256)]
        return tokens.index(bytes([value]))

    @pytest.mark.parametrize("broken", [b"\x80", b"\xe4\xe4", b"\xff", b"\xed\xa0", b"\xf4\x90"])
    def test_ids_that_are_no_text(self, model_config, broken):
        writer = babbler(TOKENIZERS["bytes"], model_config)
        text = "".join(writer.stream_after([self.byte(b) for b in broken], LOUD))
        assert text and "\ufffd" not in text

    def test_probabilities_are_the_models_own(self, model_config):
        """Pieces of characters among them, which a draw would leave out."""
        writer = babbler(TOKENIZERS["bytes"], model_config)
        found = writer.next_probabilities("the", k=1000)
        assert len(found) == 257 and sum(p for _, p in found) == pytest.approx(1, abs=1e-4)


class TestOddVocabularies:
    def test_the_unknown_token_of_others_is_not_drawn(self, model_config):
        model = {"type": "WordLevel", "vocab": {"?": 0, "a": 1, "<end>": 2, "b": 4}}
        tokenizer = ImportedTokenizer({"model": {**model, "unk_token": "?"}}, "<end>")
        writer = babbler(tokenizer, model_config, extra_ids=3)
        drawn = set(writer.stream_ids([1], dataclasses.replace(LOUD, max_new_tokens=200)))
        assert drawn == {1, 2, 4}

    def test_a_character_that_cannot_be_finished_is_not_begun(self):
        """A vocabulary of single bytes may lack some."""

        class Few(BPETokenizer):
            vocab_size = 4
            eos_token_id = 3

            def token_bytes(self, id):
                return (b"a", b"\xe4\xbd", b"\xc3", b"")[id]

        characters = Characters(Few(), 4)
        assert characters.masked(torch.zeros(4), BETWEEN).tolist() == [0, *[-torch.inf] * 2, 0]
        assert torch.isfinite(characters.masked(torch.zeros(4), 2)).all()  # nothing fits: any

    def test_lone_surrogates_of_an_old_vocabulary(self, model_config):
        writer = babbler(CharTokenizer("a\ud800b"), model_config)
        assert set(writer.generate("a", LOUD)) <= set("ab")

    def test_a_large_vocabulary_takes_moments(self):
        """The limits are far above what it takes, as other programs may be running."""
        rng = np.random.default_rng(1)
        content = rng.integers(0, 256, 2_000_000, np.uint8).tobytes()
        names = [content[at : at + at % 11 + 1] for at in range(0, 1_500_000, 10)]

        class Large(BPETokenizer):
            vocab_size = len(names)

            def token_bytes(self, id):
                return names[id]

        began = time.perf_counter()
        characters = Characters(Large(), len(names))
        assert time.perf_counter() - began < 5
        logits = torch.zeros(len(names))
        began = time.perf_counter()
        for _ in range(100):
            characters.masked(logits, BETWEEN)
        assert time.perf_counter() - began < 2


class TestBeginnings:
    """What a text begins after where there is no prompt."""

    def trained(self, name, n_documents=1, quiet=True):
        """A run that has learned from so many documents."""
        rows = [json.dumps({"text": words(4000, seed)}) for seed in range(n_documents)]
        Path(f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
        return api.train(f"{name}.jsonl", run=name, quiet=quiet, **SHAPE)

    def test_a_document_begins_where_one_was_seen_to(self, folder):
        for n_documents in (1, 3):
            run = self.trained(f"of-{n_documents}", n_documents)
            starts = {
                tuple(generator.encode_prompt(""))
                for generator in (run.generator, TextGenerator.from_run(str(run.path)))
            }
            line, end = run.tokenizer.encode("\n"), [run.tokenizer.eos_token_id]
            assert starts == {tuple(end if n_documents > 1 else line)}
            assert run.generator.encode_prompt("the") == run.tokenizer.encode("the")

    def test_a_run_that_goes_on_with_another(self, folder):
        """What its model has seen before counts; so does what it sees now."""
        self.trained("many", 3)
        Path("one.txt").write_text(words(4000, 9), encoding="utf-8")
        run = api.train("one.txt", from_run="many", run="more", quiet=True, max_steps=1,
                        device="cpu", dtype="float32", batch_size=1)  # fmt: skip
        assert run.generator.knows_beginnings

    def test_tokens_that_were_never_taught_are_not_written(self, folder):
        """Such as control characters, and first bytes of alphabets that the text does not have."""
        Path("de.txt").write_text("Die Straße läßt grüßen, sagt man.\n" * 99, encoding="utf-8")
        run = api.train("de.txt", run="de", quiet=True, **SHAPE)
        known = set(Path("de.txt").read_bytes())
        assert set(run.generate("Die", **dataclasses.asdict(LOUD)).encode()) <= known
        self.trained("english")
        more = api.train("de.txt", from_run="english", run="more", quiet=True, max_steps=1,
                         device="cpu", dtype="float32", batch_size=1)  # fmt: skip
        both = known | set(Path("english.jsonl").read_bytes())
        seen = set().union(*(
            more.generate("the", **{**dataclasses.asdict(LOUD), "sample_seed": i}).encode()
            for i in range(9)
        ))  # fmt: skip
        assert seen <= both and seen - known

    def test_samples_during_training(self, folder, monkeypatch):
        """By the same rule, as seen in what the model is given to read."""
        seen = []

        def generate(writer, prompt, sampling):
            seen.append(writer.encode_prompt(""))
            return ""

        monkeypatch.setattr(TextGenerator, "generate", generate)
        monkeypatch.setenv("FORCE_COLOR", "1")  # as if somebody looked on
        for n_documents in (1, 3):
            run = self.trained(f"of-{n_documents}", n_documents, quiet=False)
            end = [run.tokenizer.eos_token_id]
            line = run.tokenizer.encode("\n")
            assert seen and all(ids == (end if n_documents > 1 else line) for ids in seen)
            seen.clear()

    def test_runs_of_before(self, folder):
        """A manifest that says nothing is of a line; one of an imported model, of a document."""
        run = self.trained("old")
        for more, expected in (({}, False), ({"imported_from": "theirs"}, True)):
            folder = run.path / f"step-{7 + bool(more):06d}"
            with sealed_folder(folder, "manifest.json", more):
                pass
            assert knows_beginnings(run.folder) is expected

    @pytest.mark.parametrize("characters, begins", [("ab\n", "\n"), ("ab cd", " "), ("ab", "a")])
    def test_vocabularies_without_a_line_end(self, model_config, characters, begins):
        tokenizer = CharTokenizer(characters)
        writer = babbler(tokenizer, model_config)
        assert tokenizer.decode(writer.encode_prompt("")) == begins
        assert CharTokenizer().line_start() == [1]  # nothing but end of text
        assert set(writer.generate("", LOUD)) <= set(characters)

    def test_lines_without_anything_are_not_shown(self, model_config, monkeypatch):
        """Neither the line end that stands for a prompt, nor more of them; an indent is text."""
        writer = babbler(TOKENIZERS["bpe"], model_config)
        ids = writer.tokenizer.encode(" \n\r\n\n  fox\n\nthe\n")
        monkeypatch.setattr(writer, "stream_ids", lambda prompt, sampling: iter(ids))
        assert writer.generate("", LOUD) == "  fox\n\nthe\n" == "".join(writer.stream("", LOUD))
        line = dataclasses.replace(LOUD, stop=("\n",))
        assert writer.generate("", line) == "  fox"  # a line, not the end of an empty one
        assert writer.generate("a", line) == " "
        ids = writer.tokenizer.encode("\n\n ")
        assert writer.generate("", LOUD) == ""
