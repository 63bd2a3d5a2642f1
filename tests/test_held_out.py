"""The line that samples begin with, and what a model is compared with."""

import math
import random
import shlex
from pathlib import Path

import pytest
from cli_place import words

from myllm.api import prepare
from myllm.data.held_out import first_line, unigram_loss, xz_bits_per_byte
from myllm.system.shell import quoted

CHINESE = "".join(random.Random(1).choices("天地玄黄宇宙洪荒日月盈昃辰宿列张", k=6000))
TEXTS = {
    "lines": words(),
    "poem": "Ah!\nOh.\n" * 900,
    "dialogue": '"I don\'t know," she said.\n\t“And you?” he asked, and went.\n' * 150,
    "list": "- one of the items that are here\n" * 200,
    "one line": "the quick brown fox jumps over a lazy dog and then " * 200,
    "no blanks": CHINESE.translate(
        {ord(ch): chr(97 + i) for i, ch in enumerate(sorted(set(CHINESE)))}
    ),
    "chinese": CHINESE,
    "sentences": "日月盈昃，辰宿列张。寒来暑往，秋收冬藏。" * 200,
    "accents": "e\u0301" * 3000,
    "figures": "1 2 3 4 5 6 7 8\n" * 500,
    "shell": 'echo "$HOME" `id` %PATH% \\ end of it all\n' * 200,
    "controls": "\x01\x02\n\t\x03" * 1500,
    "windows": words().replace("\n", "\r\n"),
}


@pytest.fixture
def prepared(folder):
    def make(text, tokenizer="bpe"):
        Path("a.txt").write_text(text, encoding="utf-8", newline="")
        return prepare("a.txt", tokenizer=tokenizer)

    return make


class TestFirstLine:
    @pytest.mark.parametrize("tokenizer", ["bpe", "char"])
    @pytest.mark.parametrize("name", TEXTS)
    def test_of_any_text(self, prepared, name, tokenizer):
        """It is of the text, can be shown, is the same each time, and what a shell is told
        arrives; empty only where there is nothing to show."""
        token_file = prepared(TEXTS[name], tokenizer)
        line = first_line(token_file)
        assert line == line.strip() and len(line) <= 60 and first_line(token_file) == line
        assert line in TEXTS[name] and bool(line) == (name != "controls")
        assert not set(line) & set('"\\$`%\ufffd') and not line.startswith("-")
        assert all(character.isprintable() for character in line)
        assert shlex.split(quoted(line, windows=False)) == ([line] if line else [""])
        if name in ("lines", "windows", "one line", "list"):
            assert len(line) >= 20

    def test_is_of_what_is_held_out_and_begins_a_line(self, prepared):
        text = "".join(f"line {i} has a number that no other has\n" for i in range(1000))
        token_file = prepared(text)
        line = first_line(token_file)
        ids = token_file.tokens()
        held_out = [
            token_file.tokenizer.decode(ids[a:b].tolist()) for a, b in token_file.val_ranges
        ]
        assert any(f"\n{line}" in part for part in held_out) and line.startswith("line ")

    @pytest.mark.parametrize("tokenizer", ["bpe", "char"])
    def test_is_none_that_training_sees_as_well(self, prepared, tokenizer):
        """What stands at the end of each chapter is known by heart soon; a text that has nothing
        else has a line all the same."""
        same = "This is what stands at the end of each chapter of the book.\n"
        token_file = prepared(
            "".join(f"{same * 9}There was {i}.\n" for i in range(400)), tokenizer
        )
        assert first_line(token_file).startswith("This is what")
        chapters = (f"{same * 9}Chapter {i} has {i * 7} words of its own.\n" for i in range(400))
        assert first_line(prepared("".join(chapters), tokenizer)).startswith("Chapter ")

    def test_ends_at_a_word_and_leaves_characters_whole(self, prepared):
        line = first_line(prepared(TEXTS["one line"]))
        assert line.split()[-1] in TEXTS["one line"].split()
        assert not first_line(prepared(TEXTS["accents"])).startswith("\u0301")
        assert first_line(prepared(TEXTS["accents"])).endswith("\u0301")
        long = "接收路由更新信息，可以用来修改第四版的路由表。（参见第二章" + CHINESE[:90]
        assert first_line(prepared(f"{long}\n" * 99)).endswith("路由表。")


class TestComparisons:
    def test_counting_tokens(self, prepared):
        """Sixteen characters that occur equally often cost log 16 each."""
        token_file = prepared(CHINESE, "char")
        assert abs(unigram_loss(token_file) - math.log(16)) < 0.03

    def test_xz(self, prepared):
        """Of 16 characters of 3 bytes without any order, it needs at least 4 bits a character; a
        text that repeats costs next to nothing."""
        assert 4 / 3 <= xz_bits_per_byte(prepared(CHINESE)) < 2.2
        assert xz_bits_per_byte(prepared(TEXTS["one line"])) < 0.2
