"""Room: a tokenizer → what llama.cpp builds the same one from, in a GGUF file.

llama.cpp cuts texts by rules of its own, which a file chooses by a name; a tokenizer that cuts in
another way is refused.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from myllm.errors import InputError
from myllm.tokenizer import BPETokenizer, CharTokenizer
from myllm.tokenizer.base import Tokenizer
from myllm.tokenizer.imported import SPACE, ImportedTokenizer

log = logging.getLogger(__name__)

_WORDS = r"""(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"""
_REST = r"""| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
QWEN2_CUT = _WORDS + r"\p{N}" + _REST
# how a tokenizer.json cuts texts → llama.cpp's name for it, whether whole words go before merges
CUTS: dict[tuple[str, ...], tuple[str, bool]] = {
    ("as GPT-2",): ("gpt-2", False),
    ("digits", "as GPT-2"): ("smollm", False),
    (_WORDS + r"\p{N}{1,3}" + _REST, "bytes"): ("llama-bpe", True),
    (QWEN2_CUT, "bytes"): ("qwen2", False),
}


def add_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Describes a tokenizer in a GGUF file.

    Args:
        writer: a `gguf.GGUFWriter`.
        tokenizer: the tokenizer.
        vocab_size: the model's, which may have ids that the tokenizer does not use.

    Raises:
        InputError: llama.cpp has none that gives the same ids.
    """
    if isinstance(tokenizer, BPETokenizer):
        names = {id: name for name, id in tokenizer.vocab.items()}
        _add_tokens(writer, names, {}, tokenizer.eos_token_id, vocab_size)
        _add_byte_pairs(writer, "gpt-2", tokenizer.merges)
    elif isinstance(tokenizer, CharTokenizer):
        _add_characters(writer, tokenizer, vocab_size)
    elif isinstance(tokenizer, ImportedTokenizer):
        _add_imported(writer, tokenizer, vocab_size)
    else:
        raise InputError(f"llama.cpp knows nothing like a {tokenizer.kind} tokenizer")
    writer.add_bos_token_id(tokenizer.bos_token_id)
    ends = tokenizer.end_ids
    for id, add in zip(
        ends, (writer.add_eos_token_id, writer.add_eot_token_id, writer.add_eom_token_id)
    ):
        add(id)
    if len(ends) > 3:
        log.warning("a GGUF file names three ends of a text, and the model has %d", len(ends))
    writer.add_add_bos_token(bool(tokenizer.prefix_ids))
    writer.add_add_eos_token(False)
    if tokenizer.chat_template is not None:
        writer.add_chat_template(tokenizer.chat_template)


def _add_tokens(
    writer: Any, names: dict[int, str], types: dict[int, Any], end_id: int, vocab_size: int
) -> None:
    """The names of all ids. Types are `NORMAL` where nothing else is said."""
    from gguf import TokenType

    types = {end_id: TokenType.CONTROL, **types}
    ids, normal, unused = range(vocab_size), TokenType.NORMAL, TokenType.UNUSED
    writer.add_token_list([names.get(id, f"[unused {id}]") for id in ids])
    writer.add_token_types([types.get(id, normal) if id in names else unused for id in ids])


def _add_byte_pairs(writer: Any, cut: str, merges: list[tuple[str, str]]) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    # llama.cpp wants a merge; where there is none, one that no text has: it begins with characters
    writer.add_token_merges([" ".join(pair) for pair in merges] or ["no pair"])


def _add_characters(writer: Any, tokenizer: CharTokenizer, vocab_size: int) -> None:
    """A model of single pieces, each as likely as the next: a text falls into characters."""
    from gguf import TokenType

    if SPACE in tokenizer.char_to_id:
        raise InputError(f"the text has the character {SPACE}, which GGUF writes for a space")
    end = tokenizer.eos_token_id
    names = {id: SPACE if ch == " " else ch for id, ch in tokenizer.id_to_char.items()}
    names |= {0: "<unk>", end: tokenizer.eos_token}
    _add_tokens(writer, names, {0: TokenType.UNKNOWN}, end, vocab_size)
    writer.add_tokenizer_model("t5")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([0.0 if id == 0 else -1.0 for id in range(vocab_size)])
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)


def _add_imported(writer: Any, tokenizer: ImportedTokenizer, vocab_size: int) -> None:
    from gguf import TokenType

    engine, content = tokenizer.to_engine(), tokenizer.content
    model = content["model"]
    if model["type"] != "BPE":
        raise InputError("llama.cpp knows nothing like the imported tokenizer: no byte pairs")
    found = ((id, engine.id_to_token(id)) for id in range(tokenizer.vocab_size))
    names = {id: name for id, name in found if name is not None}
    types: dict[int, Any] = {
        id: TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        for id, token in engine.get_added_tokens_decoder().items()
    }
    types |= dict.fromkeys(tokenizer.end_ids, TokenType.CONTROL)
    pairs = [pair.split(" ", 1) if isinstance(pair, str) else pair for pair in model["merges"]]
    merges = [(str(left), str(right)) for left, right in pairs]
    if model.get("byte_fallback"):
        unknown = engine.token_to_id(str(model.get("unk_token")))
        types |= {} if unknown is None else {unknown: TokenType.UNKNOWN}
        is_byte = re.compile("<0x[0-9A-F]{2}>").fullmatch
        types |= {id: TokenType.BYTE for id, name in names.items() if is_byte(name)}
        _add_tokens(writer, names, types, tokenizer.eos_token_id, vocab_size)
        _add_pieces(writer, content, names, merges, vocab_size)
        return
    cut, whole_words_first = CUTS.get(_cuts(content.get("pre_tokenizer")), (None, False))
    composed = (content.get("normalizer") or {}).get("type")
    if cut is None or bool(model.get("ignore_merges")) != whole_words_first:
        raise InputError("llama.cpp has no rule that cuts texts as the imported tokenizer does")
    if composed not in (None, "NFC"):
        raise InputError(f"llama.cpp does not change texts as the imported tokenizer: {composed}")
    if composed:
        log.warning("llama.cpp does not compose characters: accents written apart stay apart")
    _add_tokens(writer, names, types, tokenizer.eos_token_id, vocab_size)
    _add_byte_pairs(writer, cut, merges)


def _cuts(rule: Any) -> tuple[str, ...]:
    """How a pre-tokenizer cuts texts, in the words of `CUTS`."""
    match rule:
        case {"type": "Sequence", "pretokenizers": [*parts]}:
            return tuple(word for part in parts for word in _cuts(part))
        case {"type": "Split", "pattern": {"Regex": str(pattern)}, "behavior": "Isolated"}:
            return () if rule.get("invert") else (pattern,)
        case {"type": "Digits", "individual_digits": True}:
            return ("digits",)
        case {"type": "ByteLevel", "add_prefix_space": False}:
            return ("as GPT-2" if rule.get("use_regex", True) else "bytes",)
    return ("another",)


def _add_pieces(
    writer: Any,
    content: dict[str, Any],
    names: dict[int, str],
    merges: list[tuple[str, str]],
    vocab_size: int,
) -> None:
    """Byte pairs of characters, as SentencePiece writes them: of the pairs in a text the one with
    the best score is joined first, so a score is the rank of the merge."""
    prefix = _prefixes_space(content)
    rank: dict[str, int] = {}
    for i, pair in enumerate(merges):
        rank.setdefault("".join(pair), i)
    pieces, known = set(names.values()), set(merges)
    for piece in rank:
        for at in range(1, len(piece)):
            pair = piece[:at], piece[at:]
            if pieces.issuperset(pair) and pair not in known:
                raise InputError(
                    f"llama.cpp would join {pair[0]!r} and {pair[1]!r}, which the imported "
                    "tokenizer does not"
                )
    last = len(merges)
    scores = [-float(rank.get(names.get(id, ""), last)) for id in range(vocab_size)]
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores(scores)
    writer.add_add_space_prefix(prefix)


def _prefixes_space(content: dict[str, Any]) -> bool:
    """Whether a space is put before a text.

    Raises:
        InputError: spaces are treated in a way that llama.cpp does not know.
    """
    match content.get("normalizer"), content.get("pre_tokenizer"):
        case {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}, None:
            return False
        case {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }, None:
            return True
        case None, {
            "type": "Metaspace",
            "replacement": "▁",
            "split": False,
            "prepend_scheme": "never",
        }:
            return False  # the other schemes put one only before texts that begin with none
    raise InputError("llama.cpp does not treat spaces as the imported tokenizer does")
