"""Texts with endless words: learning and encoding stay linear, and other texts are not touched."""

import base64
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Engine
from tokenizers import models, pre_tokenizers, trainers

from myllm.tokenizer import BPETokenizer, Tokenizer, long_runs
from myllm.tokenizer.base import BYTE_NAMES
from myllm.tokenizer.long_runs import LONGEST, cut_long_runs

RNG = random.Random(1)


def of(alphabet, n=3000):
    return "".join(RNG.choices(alphabet, k=n))


LONG = {
    "dna": of("ACGT"),
    "one letter": "a" * 3000,
    "blanks": " " * 3000,
    "newlines": "\n" * 3000,
    "line of signs": "=" * 3000,
    "han": of([chr(c) for c in range(0x4E00, 0x5E00)]),
    "thai": of([chr(c) for c in range(0x0E01, 0x0E2F)]),
    "emoji": of([chr(c) for c in range(0x1F600, 0x1F640)]),
    "controls": of("\x1c\x1d\x01="),
    "digits": of("0123456789"),
    "accents apart": "e\u0301" * 1500,
}
ORDINARY = {
    "english": "The lower the slower, the lowest is the slowest; it's what they've said. " * 40,
    "code": "def f(x):\n" + "    " * 40 + "return [x, 3.14, 'a']  # " + "-" * 200 + "\n\n\n",
    "chinese": "你好，世界。這是一段中文。沒有空格，但有標點！" * 60,
    "urls": "see https://example.org/" + "a/very-long_path?" * 60 + " there\r\n" * 3,
    "base64": base64.b64encode(RNG.randbytes(3000)).decode(),
    "json": '{"id":17,"tags":["a","b"],"text":"x y"},' * 100,
}
CUTTER = pre_tokenizers.ByteLevel(add_prefix_space=False)


@pytest.mark.parametrize("name", LONG)
def test_no_token_is_learned_from_more_than_a_piece(name):
    """Learning scans what is in one word again and again, so a word has an end."""
    tokenizer = BPETokenizer(400).train(["some words before ", LONG[name], " and after"])
    longest = max(len(tokenizer.token_bytes(id)) for id in range(tokenizer.vocab_size))
    assert longest <= 4 * LONGEST


@pytest.mark.parametrize("name", LONG)
def test_long_runs_round_trip(name, tmp_path):
    """Before and after saving, alone and in a text, the ids are the same and give the text."""
    text = f"before {LONG[name]} after\n"
    tokenizer = BPETokenizer(320).train(text)
    tokenizer.save(tmp_path / "t.json")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert Tokenizer.load(tmp_path / "t.json").encode(text) == ids
    assert tokenizer.to_engine().encode(text).ids == ids


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_texts_give_the_merges_of_the_library(name):
    """Nothing changes for them: the merges are those without any cutting."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = CUTTER
    trainer = trainers.BpeTrainer(vocab_size=399, initial_alphabet=BYTE_NAMES, show_progress=False)
    engine.train_from_iterator([ORDINARY[name]], trainer)
    found = BPETokenizer(400).train(ORDINARY[name]).vocab
    assert {n: id for n, id in found.items() if n in engine.get_vocab()} == engine.get_vocab()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", " ", "\n", "=", "7", "é", "漢", "'s", "\x1c", "\xa0"]),
                  st.sampled_from([1, 2, 5, LONGEST, LONGEST + 1, 3 * LONGEST])),
        max_size=12,
    )
)  # fmt: skip
def test_cutting_loses_nothing(parts):
    """The pieces join to the text, and none has a word longer than the limit."""
    text = "".join(part * n for part, n in parts)
    pieces = list(cut_long_runs([text]))
    assert "".join(pieces) == text
    for piece in pieces:
        for _, (begin, end) in CUTTER.pre_tokenize_str(piece):
            assert end - begin <= LONGEST + 1  # and the blank before it


def test_a_text_without_long_runs_is_handed_on_as_it_is():
    text = " ".join(ORDINARY.values())
    assert list(cut_long_runs([text, text])) == [text, text]


def test_what_is_learned_from_long_runs_is_bounded(monkeypatch):
    """Their pieces are all different, so the memory of learning would grow with them."""
    monkeypatch.setattr(long_runs, "LEARNED_BYTES", 5000)
    n_bytes = sum(len(piece) for piece in cut_long_runs("word " + "ACGT" * 500 for _ in range(9)))
    assert 5000 <= n_bytes <= 5000 + LONGEST + 9 * len("word ")


def test_a_file_without_line_ends_is_read_in_pieces(tmp_path):
    """A megabyte at a time, not the line as a whole."""
    from myllm.tokenizer import iterate_texts

    text = "ab " * 1_500_000 + "\nlast\n"
    (tmp_path / "line.txt").write_text(text, encoding="utf-8", newline="")
    pieces = list(iterate_texts(tmp_path / "line.txt"))
    assert max(map(len, pieces)) <= 1 << 21
    assert "".join(pieces) == text
