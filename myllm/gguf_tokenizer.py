"""Room: a tokenizer → what llama.cpp builds the same one from, in a GGUF file."""

from __future__ import annotations

from typing import Any

from myllm.errors import InputError
from myllm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


def add_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    import gguf

    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    ids = range(tokenizer.vocab_size)
    end = tokenizer.end_of_text_id
    types = [control if id == end else normal for id in ids]
    if isinstance(tokenizer, BPETokenizer):
        names = {id: name for name, id in tokenizer.vocab.items()}
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_list([names[id] for id in ids])
        writer.add_token_types(types)
        writer.add_token_merges([" ".join(pair) for pair in tokenizer.merges])
    elif isinstance(tokenizer, CharTokenizer):
        if SPACE in tokenizer.char_to_id:
            raise InputError(f"the text has the character {SPACE}, which GGUF writes for a space")
        # a model of single pieces, each as likely as the next: the text falls into characters
        names = {0: "<unk>", end: tokenizer.end_of_text}
        names |= {id: SPACE if ch == " " else ch for id, ch in tokenizer.id_to_char.items()}
        types[0] = gguf.TokenType.UNKNOWN
        writer.add_tokenizer_model("t5")
        writer.add_tokenizer_pre("default")
        writer.add_token_list([names[id] for id in ids])
        writer.add_token_scores([0.0 if id == 0 else -1.0 for id in ids])
        writer.add_token_types(types)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(False)
        writer.add_remove_extra_whitespaces(False)
    else:
        raise InputError(
            "llama.cpp has to know how an imported tokenizer cuts texts, which is not written in "
            "its file: convert the original with llama.cpp's own script"
        )
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    writer.add_add_bos_token(False)
    writer.add_add_eos_token(False)
