"""The tokenizers: ids, round trips, files, hashes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from myllm.errors import ConfigError, InputError
from myllm.tokenizer import (
    END_OF_TEXT,
    TOKENIZERS,
    BPETokenizer,
    CharTokenizer,
    Tokenizer,
    build_tokenizer,
)

NASTY = [
    "",
    " ",
    "\n",
    "plain words, and some more.",
    "你好，世界。這是一段中文。",
    "नमस्ते दुनिया, क्षत्रिय",
    "👩‍👩‍👧‍👦 👍🏽 🏳️‍🌈 🇩🇪",
    "e\u0301 n\u0303 Z\u0351\u036b\u0343 \u0915\u094d\u0937",
    "tabs\tand\t\truns    of     spaces   ",
    "\r\nCRLF\r\n\r\nand\rCR\n\n\nand LF",
    "0123456789 3.14159 1,000,000 0x7f",
    END_OF_TEXT,
    f"before{END_OF_TEXT}after {END_OF_TEXT}{END_OF_TEXT}",
    "<|endoftext|", "<|im_start|>system<|im_end|> [MASK] </s> <unk>",
    "it's we've THEY'LL I'd '' ' s",
    "\u00a0\u2003\u3000\u200b\ufeff\u2028",
    "العربية עברית ไทย한국어",
    "\ufffd kept",
]  # fmt: skip
ENGLISH = "The lower the slower, the lowest is the slowest; there and then they went. " * 40
KINDS = sorted(TOKENIZERS)


def trained(kind, text=ENGLISH + "".join(NASTY)):
    """A tokenizer of a kind that knows every character of the nasty texts."""
    return build_tokenizer(kind, 400).train(text)


@pytest.fixture(scope="module", params=KINDS)
def each(request):
    return trained(request.param)


@pytest.fixture(scope="module")
def bpe():
    return trained("bpe", ENGLISH)


class TestCharTokenizer:
    def test_ids_are_the_sorted_characters_from_one(self):
        """char_to_id and id_to_char are each other's inverse, and 0 is nobody's."""
        tokenizer = CharTokenizer().train("banana split")
        assert tokenizer.char_to_id == {c: i for i, c in enumerate(" abilnpst", start=1)}
        assert tokenizer.id_to_char == {i: c for c, i in tokenizer.char_to_id.items()}
        assert 0 not in tokenizer.id_to_char
        assert tokenizer.vocab_size == 9 + 2

    @pytest.mark.parametrize("stranger", ["z", "é", "你", "😀", "\U0010ffff"])
    def test_unknown_character_is_zero(self, stranger):
        """An unseen character is id 0 in both ways of encoding, and U+FFFD in the text."""
        tokenizer = CharTokenizer().train("abc")
        assert tokenizer.encode(f"a{stranger}c") == [1, 0, 3]
        assert tokenizer.encode_batch([f"a{stranger}c"])[0].tolist() == [1, 0, 3]
        assert tokenizer.decode([1, 0, 3]) == "a\ufffdc"

    def test_count_unknown(self):
        """count_unknown counts the zeros only."""
        tokenizer = CharTokenizer().train("abc")
        assert tokenizer.count_unknown(np.array(tokenizer.encode("xaybz"))) == 3
        assert tokenizer.count_unknown(np.array(tokenizer.encode("abc"))) == 0
        assert tokenizer.count_unknown(np.array([], np.int64)) == 0

    @pytest.mark.parametrize("source", ["a\0b", "\0", ["fine", "not\0fine"]])
    def test_null_characters_are_a_value_error(self, source):
        """Null characters in a training text raise ValueError."""
        with pytest.raises(ValueError, match="null characters"):
            CharTokenizer().train(source)

    def test_null_characters_in_the_vocabulary_are_a_value_error(self):
        """A vocabulary that holds the null character is refused."""
        with pytest.raises(ValueError, match="null characters"):
            CharTokenizer("a\0")

    def test_training_again_forgets_the_first_vocabulary(self):
        """train replaces what was there."""
        tokenizer = CharTokenizer().train("abc").train("xy")
        assert tokenizer.char_to_id == {"x": 1, "y": 2}
        assert tokenizer.encode_batch(["abcxy"])[0].tolist() == [0, 0, 0, 1, 2]

    def test_end_of_text_is_the_last_id_and_no_text(self):
        """End of text has an id of its own, which decodes to nothing."""
        tokenizer = CharTokenizer().train("abc")
        assert tokenizer.eos_token_id == 4
        assert tokenizer.decode([1, 4, 2]) == "ab"

    def test_a_lone_surrogate_survives_saving(self, tmp_path):
        """A vocabulary from JSON with half a surrogate pair can be saved and loaded."""
        tokenizer = CharTokenizer().train("ab\ud83d")
        tokenizer.save(tmp_path / "t.json")
        assert Tokenizer.load(tmp_path / "t.json").content_hash == tokenizer.content_hash


class TestBPETokenizer:
    @settings(max_examples=300, deadline=None)
    @given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=200))
    def test_any_text_round_trips(self, bpe, text):
        """decode(encode(text)) is text, whatever the text."""
        assert bpe.decode(bpe.encode(text)) == text

    @settings(max_examples=100, deadline=None)
    @given(text=st.text(alphabet="<|endoftxf> \n's1é", max_size=60))
    def test_look_alikes_of_end_of_text_are_text(self, bpe, text):
        """No text gives eos_token_id, not even one made of its characters."""
        ids = bpe.encode(text + END_OF_TEXT + text)
        assert bpe.eos_token_id not in ids
        assert bpe.decode(ids) == text + END_OF_TEXT + text

    @pytest.mark.parametrize("size", [-1, 0, 1, 255, 256])
    def test_vocabulary_below_the_least_is_refused(self, size):
        """Fewer than 257 ids is an InputError with the value and the limit."""
        with pytest.raises(InputError, match=rf"{size}\b.*257"):
            BPETokenizer(vocab_size=size)

    def test_least_vocabulary_has_no_merges(self):
        """257 ids are the bytes and end of text."""
        tokenizer = BPETokenizer(vocab_size=257).train(ENGLISH)
        assert (tokenizer.vocab_size, tokenizer.merges) == (257, [])
        assert len(tokenizer.encode("héllo")) == 6

    def test_default_vocabulary_size(self):
        """BPETokenizer() aims at 10,000."""
        assert BPETokenizer().target_vocab_size == 10_000

    @pytest.mark.parametrize("size", [258, 270, 285])
    def test_vocabulary_size_is_reached(self, size):
        """A text that is long enough gives exactly the vocabulary asked for."""
        tokenizer = BPETokenizer(vocab_size=size).train(ENGLISH)
        assert tokenizer.vocab_size == size == len(tokenizer.vocab)
        assert len(tokenizer.merges) == size - 257

    def test_short_text_gives_fewer(self):
        """A text too short for the vocabulary gives a smaller one, told by vocab_size."""
        tokenizer = BPETokenizer(vocab_size=5000).train("abab abab")
        assert 257 < tokenizer.vocab_size < 270
        assert tokenizer.target_vocab_size == 5000

    def test_untrained_encodes_bytes(self):
        """Before training, a token is a byte."""
        tokenizer = BPETokenizer()
        assert len(tokenizer.encode("né你")) == 1 + 2 + 3
        assert tokenizer.decode(tokenizer.encode("né你")) == "né你"

    def test_vocab_and_merges_belong_together(self, bpe):
        """Each merge joins two entries of the vocabulary to a third; ids have no gap."""
        assert sorted(bpe.vocab.values()) == list(range(bpe.vocab_size))
        assert bpe.vocab[END_OF_TEXT] == bpe.eos_token_id == bpe.vocab_size - 1
        assert bpe.merges
        for left, right in bpe.merges:
            assert {left, right, left + right} <= set(bpe.vocab)

    def test_ids_equal_those_of_an_independent_engine(self, bpe):
        """Hugging Face's own GPT-2 style tokenizer gives the same ids from vocab and merges."""
        from tokenizers import ByteLevelBPETokenizer

        vocab = {name: id for name, id in bpe.vocab.items() if name != END_OF_TEXT}
        other = ByteLevelBPETokenizer(vocab=vocab, merges=bpe.merges)
        for text in [ENGLISH, *NASTY]:
            assert bpe.encode(text) == other.encode(text).ids

    def test_pre_tokenization_is_gpt2s(self):
        """No token spans a word's end, and a space belongs to the word after it."""
        text = "we've been  here, 2023!\n" * 50
        tokenizer = BPETokenizer(vocab_size=400).train(text)
        pieces = [tokenizer.token_bytes(id).decode() for id in tokenizer.encode(text)]
        assert pieces[:9] == ["we", "'ve", " been", " ", " here", ",", " 2023", "!", "\n"]

    def test_lone_surrogate_does_not_stop_encoding(self, bpe):
        """Half a surrogate pair is no character: it is replaced, the rest stays."""
        assert bpe.decode(bpe.encode("a\ud83db")) == "a?b"

    def test_token_bytes_join_to_the_text(self, bpe):
        """The bytes of the tokens are the UTF-8 of the text."""
        for text in NASTY:
            assert b"".join(map(bpe.token_bytes, bpe.encode(text))) == text.encode()

    def test_bytes_that_are_no_text_become_replacement(self, bpe):
        """Half a character decodes to U+FFFD, at the end too."""
        half = bpe.encode("你")[:-1]
        assert "\ufffd" in bpe.decode(half)
        assert bpe.decode(half + bpe.encode("ok")).endswith("ok")

    def test_training_is_deterministic(self, bpe):
        """The same text gives the same tokenizer."""
        assert trained("bpe", ENGLISH).content_hash == bpe.content_hash


class TestBoth:
    @pytest.mark.parametrize("text", NASTY)
    def test_round_trip_before_and_after_loading(self, each, text, tmp_path):
        """Nasty texts come back unchanged, and a loaded tokenizer gives the same ids."""
        each.save(tmp_path / "tokenizer.json")
        loaded = type(each).load(tmp_path / "tokenizer.json")
        assert each.decode(each.encode(text)) == text
        assert loaded.encode(text) == each.encode(text)
        assert loaded.decode(loaded.encode(text)) == text

    @pytest.mark.parametrize("text", NASTY)
    def test_stream_joins_to_the_text(self, each, text):
        """The pieces of decode_stream are whole characters and join to what decode gives."""
        pieces = list(each.decode_stream(each.encode(text)))
        assert "".join(pieces) == each.decode(each.encode(text)) == text
        if "\ufffd" not in text:
            assert not any("\ufffd" in piece for piece in pieces)

    def test_stream_gives_text_as_soon_as_it_is_whole(self, each):
        """A character is given with its last token, not later."""
        ids = each.encode("x你")
        pieces = []
        stream = each.decode_stream(iter(ids))
        for _ in ids:
            pieces.append(next(stream))
        assert "".join(pieces) == "x你"
        assert pieces[0] == "x"

    def test_encode_batch_equals_encode(self, each):
        """A batch gives each text's ids, in order."""
        batch = each.encode_batch(NASTY)
        assert [ids.tolist() for ids in batch] == [each.encode(text) for text in NASTY]
        assert all(isinstance(ids, np.ndarray) and ids.ndim == 1 for ids in batch)
        assert each.encode_batch([]) == []

    def test_ids_are_plain_integers_in_range(self, each):
        """encode gives a list of int below vocab_size."""
        ids = each.encode("".join(NASTY))
        assert isinstance(ids, list) and {type(id) for id in ids} == {int}
        assert 0 <= min(ids) and max(ids) < each.vocab_size

    def test_end_of_text_in_a_text_is_plain(self, each):
        """The special token's name inside a text never gives its id."""
        for text in NASTY:
            assert each.eos_token_id not in each.encode(text)
        assert each.decode([each.eos_token_id]) == ""
        assert each.token_bytes(each.eos_token_id) == b""

    @pytest.mark.parametrize("id", [-1, 10**6])
    def test_id_beyond_the_vocabulary_is_refused(self, each, id):
        """An id that is not in the vocabulary is an InputError that names it."""
        with pytest.raises(InputError, match=str(id)):
            each.decode([id])

    def test_byte_counts(self, each):
        """byte_counts has the length of every token's bytes."""
        counts = each.byte_counts()
        assert counts.shape == (each.vocab_size,)
        ids = each.encode("ne你👦")
        assert counts[ids].sum() == 1 + 1 + 3 + 4
        assert counts[each.eos_token_id] == 0

    @pytest.mark.parametrize("kind", KINDS)
    def test_training_sources_are_equal(self, kind, tmp_path, sample_text):
        """A text, an iterable of its pieces, and a file give the same tokenizer."""
        text = sample_text + "\nCRLF\r\nand é\n"
        path = tmp_path / "text.txt"
        path.write_bytes(text.encode())
        whole = trained(kind, text)
        for source in (path, [path], iter([text])):
            assert build_tokenizer(kind, 400).train(source).content_hash == whole.content_hash
        split = text.splitlines(keepends=True)
        if kind == "char":  # pairs over a cut are not learned, characters are the same
            assert CharTokenizer().train(split).content_hash == whole.content_hash

    @pytest.mark.parametrize("kind", KINDS)
    def test_training_on_nothing(self, kind):
        """No text gives the least vocabulary and no error."""
        tokenizer = build_tokenizer(kind, 400).train([])
        assert tokenizer.vocab_size < trained(kind).vocab_size or not tokenizer.learns
        assert tokenizer.vocab_size == {"char": 2, "bpe": 257}.get(kind, tokenizer.vocab_size)

    def test_hash_is_kept_by_loading_and_tells_texts_apart(self, each, tmp_path):
        """content_hash is the same after loading, and another for another text."""
        each.save(tmp_path / "tokenizer.json")
        assert Tokenizer.load(tmp_path / "tokenizer.json").content_hash == each.content_hash
        assert len(each.content_hash) == 64
        other = trained(each.kind, "another text with zebras " * 30)
        assert (other.content_hash != each.content_hash) == each.learns

    def test_saved_is_utf8_json(self, each, tmp_path):
        """The file is JSON and names its kind."""
        each.save(tmp_path / "tokenizer.json")
        content = json.loads((tmp_path / "tokenizer.json").read_text(encoding="utf-8"))
        assert content["kind"] == each.kind

    def test_load_on_the_base_class_finds_the_kind(self, each, tmp_path):
        """Tokenizer.load gives the class that was saved; another class refuses the file."""
        path = tmp_path / "tokenizer.json"
        each.save(path)
        assert type(Tokenizer.load(path)) is type(each)
        other = next(cls for cls in TOKENIZERS.values() if cls is not type(each))
        with pytest.raises(InputError, match=each.kind):
            other.load(path)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"{",
            b"\xff\xfe\x00",
            b"[]",
            b"null",
            b'"bpe"',
            b"{}",
            b'{"kind": 3}',
            b'{"kind": "wordpiece"}',
            b'{"kind": "char"}',
            b'{"kind": "char", "characters": ["a"]}',
            b'{"kind": "char", "characters": "aa"}',
            b'{"kind": "char", "characters": "a\\u0000"}',
            b'{"kind": "bpe"}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": null, "merges": []}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": {"a": 7}, "merges": []}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": {"a": "0"}, "merges": []}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": {"a": 0}, "merges": [["a"]]}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": {"a": 0}, "merges": [["a","b"]]}',
            b'{"kind": "bpe", "target_vocab_size": 300, "vocab": {"a": 0}, "merges": []}',
            b"[" * 100_000,
        ],
    )
    def test_damaged_file_is_an_input_error(self, content, tmp_path):
        """What is no tokenizer is refused by name, whatever is in it."""
        path = tmp_path / "damaged.json"
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged.json"):
            Tokenizer.load(path)

    @pytest.mark.parametrize("lost", ["a", END_OF_TEXT])
    def test_vocabulary_without_a_needed_token_is_damaged(self, bpe, tmp_path, lost):
        """A BPE file that lacks a byte or end of text is refused, not used with losses."""
        content = {**bpe.to_dict(), "merges": []}
        names = [n for n in sorted(bpe.vocab, key=bpe.vocab.get) if n != lost and len(n) != 2]
        content["vocab"] = {name: id for id, name in enumerate(names)}
        (tmp_path / "lossy.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(InputError, match="lossy.json"):
            Tokenizer.load(tmp_path / "lossy.json")

    def test_missing_file_is_an_input_error(self, tmp_path):
        """No such file is an InputError that names it."""
        with pytest.raises(InputError, match="nowhere.json"):
            Tokenizer.load(tmp_path / "nowhere.json")

    def test_unknown_kind_names_the_nearest(self):
        """An unknown tokenizer is refused with the choices."""
        with pytest.raises(ConfigError, match="did you mean char.*bpe, .*char"):
            build_tokenizer("chars", 300)
