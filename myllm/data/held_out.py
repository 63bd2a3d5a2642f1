"""Room: the part of a text that is held out → a line of it, and what plain methods make of it.

What a model is compared with: counting tokens, and a compressor. Knows nothing of models.
"""

from __future__ import annotations

import lzma
import math
import re
import unicodedata
from collections.abc import Iterator, Sequence

import numpy as np

from myllm.data.token_file import Range, TokenFile
from myllm.tokenizer import Tokenizer

SHORTEST, LONGEST = 20, 60  # characters of a line to begin with
LOOKED_AT = 2_000  # tokens of each range: a line is found in its first ones, or never
BLOCK = 1 << 24  # tokens looked at at once
COUNTED = 4_000_000  # tokens that frequencies are taken from
TRIED = 50  # lines that training sees as well: then there is hardly another one
SEARCHED = 1_000_000  # bytes of training text that a line is looked for in
XZ_TRAIN, XZ_VAL = 400_000, 200_000  # bytes: two compressions of those take a third of a second
# where a line is cut: what no shell, on no system, takes as it is within quotes, and control
# characters
_UNSAFE = re.compile(r"[\"\\$`%\x00-\x1f\x7f-\x9f\u2028\u2029\ufffd]+")
_SENTENCE_END = re.compile(r"(?<=[.!?…。！？]) +|(?<=[。！？])")


def first_line(token_file: TokenFile) -> str:
    """The beginning of a line, or of a sentence, that training does not see: 20 to 60 characters
    up to a word's end, where the text has such lines; else the nearest to it. Always the same for
    the same text, and fit for a command line; empty where nothing of it can be shown.

    A line that stands in what is trained on, too, is taken only if there is hardly another one.
    """
    ids = token_file.tokens()
    taught = _bytes(ids, token_file.train_ranges, token_file.tokenizer, SEARCHED)
    left, first = TRIED, ""
    texts = [
        token_file.tokenizer.decode(ids[start : min(end, start + LOOKED_AT)].tolist())
        for start, end in token_file.val_ranges
    ]
    best = ""
    for parts in (_beginnings, _whole_lines, _lines, _sentences, _words, _anything):
        for part in (part for text in texts for part in parts(text)):
            line = _shortened(part)
            if len(line) >= SHORTEST:
                if not left or line.encode() not in taught:
                    return line if left else first
                left, first = left - 1, first or line
            best = line if len(line) > len(best) else best
    return first or best


def _beginnings(text: str) -> Iterator[str]:
    """Lines that go on with nothing: of a text that is broken into lines few begin a sentence."""
    return (line for line in _whole_lines(text) if not line[:1].islower())


def _whole_lines(text: str) -> Iterator[str]:
    """But the first one, in the middle of which the text may begin, and the last."""
    for line in re.split(r"[\r\n]+", text)[1:-1]:
        if not _UNSAFE.search(line):
            yield _from_first_word(line)


def _lines(text: str) -> Iterator[str]:
    for line in re.split(r"[\r\n]+", text)[1:-1]:
        yield _from_first_word(line)


def _sentences(text: str) -> Iterator[str]:
    for sentence in _SENTENCE_END.split(text)[1:]:
        yield _from_first_word(sentence)


def _words(text: str) -> Iterator[str]:
    for part in _UNSAFE.split(text):
        yield _from_first_word(part.partition(" ")[2] or part)


def _anything(text: str) -> Iterator[str]:
    for part in _UNSAFE.split(text):
        yield part.strip(" -")  # a dash would make a flag of it


def _from_first_word(part: str) -> str:
    """Without the dash of a list or a quotation mark before the first word, and up to what is
    unsafe; nothing if that is no text but figures, a table."""
    start = re.search(r"\w", part)
    part = _UNSAFE.split(part[start.start() :])[0].strip() if start else ""
    letters = sum(
        character.isalpha() or unicodedata.combining(character) > 0 for character in part
    )
    return part if 2 * letters > len(part) else ""


def _shortened(part: str) -> str:
    """Up to a word's end, or that of a Chinese or Japanese sentence; characters that consist of
    several are left whole."""
    if len(part) <= LONGEST:
        return part
    end = part.rfind(" ", SHORTEST, LONGEST + 1)
    if (full_stop := max(part.rfind(mark, SHORTEST, LONGEST) for mark in "。！？")) > 0:
        end = full_stop + 1
    if end < 0:
        end = LONGEST
        while end > 1 and (_continues(part[end]) or part[end - 1] == "\u200d"):
            end -= 1
    return part[:end].rstrip()


def _continues(character: str) -> bool:
    """Whether it belongs to the character before it: an accent, a modifier, a joiner."""
    is_tone = "\U0001f3fb" <= character <= "\U0001f3ff"
    return unicodedata.category(character)[0] == "M" or character == "\u200d" or is_tone


def unigram_loss(token_file: TokenFile) -> float:
    """Nats per token of the text held out, for whoever knows of each token how often it occurs in
    the rest."""
    counts = np.ones(token_file.tokenizer.vocab_size)  # (V,): none is impossible
    counts += _counts(token_file, token_file.train_ranges)
    val = _counts(token_file, token_file.val_ranges)
    return float(-(val * np.log(counts / counts.sum())).sum() / max(1, val.sum()))


def unseen_tokens(token_file: TokenFile) -> list[int]:
    """The ids of the vocabulary that occur nowhere in the text, such as single bytes of
    characters that it does not have."""
    ids = token_file.tokens()
    seen = np.zeros(token_file.tokenizer.vocab_size, bool)
    for start in range(0, len(ids), BLOCK):
        seen[ids[start : start + BLOCK]] = True
    return [int(id) for id in np.flatnonzero(~seen)]


def _counts(token_file: TokenFile, ranges: Sequence[Range]) -> np.ndarray:
    ids, left = token_file.tokens(), COUNTED
    counts = np.zeros(token_file.tokenizer.vocab_size)
    for start, end in ranges:
        part = ids[start : min(end, start + left)]
        left -= len(part)
        counts += np.bincount(part, minlength=len(counts))[: len(counts)]
    return counts


def xz_bits_per_byte(token_file: TokenFile) -> float:
    """Bits that xz takes for a byte of the text held out, after it has read text to learn from.

    That is how much longer a compressed piece of the training text (its first 400 kB) gets with
    the text held out (at most 200 kB of it) behind it; NaN where there is none.
    """
    ids, tokenizer = token_file.tokens(), token_file.tokenizer
    train = _bytes(ids, token_file.train_ranges, tokenizer, XZ_TRAIN)
    val = _bytes(ids, token_file.val_ranges, tokenizer, XZ_VAL)
    more = _xz_size(train + val) - _xz_size(train)
    return 8 * more / len(val) if val else math.nan


def _xz_size(content: bytes) -> int:
    return len(lzma.compress(content, format=lzma.FORMAT_ALONE))


def _bytes(ids: np.ndarray, ranges: Sequence[Range], tokenizer: Tokenizer, most: int) -> bytes:
    found: list[bytes] = []
    n_bytes = 0
    for start, end in ranges:
        for id in ids[start : min(end, start + most)].tolist():
            found.append(tokenizer.token_bytes(id))
            n_bytes += len(found[-1])
            if n_bytes >= most:
                return b"".join(found)
    return b"".join(found)
