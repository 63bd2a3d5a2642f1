"""Room: texts → the same texts for learning byte pairs, without endless pre-tokens.

Learning scans a pre-token anew for each pair that is joined in it, so its time grows with the
square of the longest one: DNA in a line, thousands of blanks, a writing without spaces. Words of
ordinary text are never as long as `LONGEST`, so nothing changes for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

LONGEST = 256  # characters of a pre-token that is left as it is
LEARNED_BYTES = 1 << 21  # of longer ones, in pieces: each takes about 5 s and 100 MB

# blanks as the library's regular expressions know them: four fewer than Python's
_BLANK, _OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"
_ORDINARY = re.compile(
    rf"(?:{_OTHER}{{1,{LONGEST}}}+(?!{_OTHER})|{_BLANK}{{1,{LONGEST}}}+(?!{_BLANK}))*+"
)
# the last of several blanks belongs to the word after them
_RUN = re.compile(rf"{_OTHER}+|{_BLANK}+(?={_BLANK})|{_BLANK}")


def cut_long_runs(texts: Iterable[str]) -> Iterator[str]:
    """The texts with every pre-token of more than `LONGEST` characters cut into such pieces.

    Of these pieces the first `LEARNED_BYTES` are given, as text of this kind has no words that
    come again: each piece is another one, and the memory of learning grows with them.

    Args:
        texts: any texts; those without such pre-tokens are given unchanged.
    """
    left = LEARNED_BYTES
    for text in texts:
        start = 0
        for begin, end in _long_pre_tokens(text):
            yield text[start:begin]
            for at in range(begin, end, LONGEST):
                if left > 0:
                    piece = text[at : min(at + LONGEST, end)]
                    left -= len(piece.encode("utf-8"))
                    yield piece
            start = end
        yield text[start:] if start else text


def _long_pre_tokens(text: str) -> Iterator[tuple[int, int]]:
    """Where they begin and end. Only runs that could hold one are looked at closely."""
    from tokenizers import pre_tokenizers

    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    at = 0
    while (at := _end(_ORDINARY, text, at)) < len(text):
        run_end = _end(_RUN, text, at)
        for _, (begin, end) in cutter.pre_tokenize_str(text[at:run_end]):
            if end - begin > LONGEST:
                yield at + begin, at + end
        at = run_end


def _end(pattern: re.Pattern[str], text: str, at: int) -> int:
    match = pattern.match(text, at)
    assert match is not None
    return match.end()
