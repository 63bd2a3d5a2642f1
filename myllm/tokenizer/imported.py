"""Room: another program's `tokenizer.json` → a `Tokenizer` that gives the same ids.

Knows nothing of files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from myllm.errors import InputError
from myllm.tokenizer.base import NAME_TO_BYTE, EngineTokenizer, TextSource, Tokenizer

MAX_IDS = 10**7  # as many as a model may have
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


class ImportedTokenizer(EngineTokenizer):
    """Byte-level or SentencePiece-like byte pairs (or characters), as another program has them.

    Encoding is the `tokenizers` library's, by the file's own rules (normalisation, cutting,
    merges), but for special tokens: their names in a text are text.
    """

    kind = "imported"

    def __init__(
        self,
        content: dict[str, Any],
        eos_token: str,
        chat_template: str | None = None,
        more_ends: Sequence[int] = (),
    ) -> None:
        """
        Args:
            content: of a `tokenizer.json`.
            eos_token: the name of the token that ends a text.
            chat_template: is kept for other programs.
            more_ends: the ids of other tokens at which a model has ended, too.

        Raises:
            InputError: not a tokenizer, not byte pairs, or without that token.
        """
        from tokenizers import Tokenizer as Engine

        model = content.get("model")
        kind = model.get("type") if isinstance(model, dict) else None
        if kind not in ("BPE", "WordLevel"):  # the second is what a character tokenizer becomes
            raise InputError(f"its model is {kind}: byte pairs are what is known here")
        try:
            self._engine = Engine.from_str(json.dumps(content))
        except Exception as error:  # the library raises nothing narrower
            raise InputError(f"the tokenizers library refuses it: {error}") from None
        self._engine.no_truncation()
        self._engine.no_padding()
        self._engine.encode_special_tokens = True
        self.content, self._end, self._template = content, eos_token, chat_template
        end = self._engine.token_to_id(eos_token)
        if end is None:
            raise InputError(f"it has no token {eos_token!r}, which should end a text")
        self._end_ids = tuple(dict.fromkeys([end, *more_ends]))
        self._unused: list[int] = []
        self._bytes = self._all_bytes()
        if not all(0 <= id < len(self._bytes) for id in self._end_ids):
            raise InputError(f"its ends of a text {self._end_ids} are not all in its vocabulary")
        unknown = self._engine.token_to_id(str(content["model"].get("unk_token")))
        # not what a byte-level vocabulary names so, which lacks no character: its end of text
        named = [] if unknown is None else [unknown]
        self._unknown_ids = tuple(id for id in named if id not in self._end_ids)
        self._prefix = self._ids_before("a")

    def _all_bytes(self) -> list[bytes]:
        """What each id stands for; finds those that stand for nothing."""
        byte_level = "ByteLevel" in json.dumps(self.content.get("decoder"))
        added = self._engine.get_added_tokens_decoder()
        special = {id for id, token in added.items() if token.special}
        n_ids = max(self._engine.get_vocab(with_added_tokens=True).values()) + 1
        if n_ids > MAX_IDS:
            raise InputError(f"its ids go up to {n_ids - 1:,}: {MAX_IDS - 1:,} is the limit")
        found = []
        for id in range(n_ids):
            name = self._engine.id_to_token(id)
            if name is None:
                self._unused.append(id)
                found.append(b"")
            elif id in special or id in self._end_ids:
                found.append(b"")
            elif byte_level and all(ch in NAME_TO_BYTE for ch in name):
                found.append(bytes(NAME_TO_BYTE[ch] for ch in name))
            elif byte := re.fullmatch("<0x([0-9A-Fa-f]{2})>", name):
                found.append(bytes.fromhex(byte[1]))
            else:
                found.append(name.replace(SPACE, " ").encode("utf-8", "replace"))
        return found

    def _ids_before(self, text: str) -> list[int]:
        """What the file's own rules put before a text, as programs do that run the model."""
        alone = self.encode(text)
        whole = self._engine.encode(text, add_special_tokens=True).ids
        starts = (i for i in range(len(whole)) if whole[i : i + len(alone)] == alone)
        return whole[: next(starts, 0)]

    def train(self, source: TextSource) -> Tokenizer:
        raise InputError("an imported tokenizer is trained already")

    @property
    def eos_token_id(self) -> int:
        return self._end_ids[0]

    @property
    def end_ids(self) -> tuple[int, ...]:
        return self._end_ids

    @property
    def eos_token(self) -> str:
        return self._end

    def ids_without_token(self, vocab_size: int) -> list[int]:
        return self._unused + super().ids_without_token(vocab_size)

    @property
    def unknown_ids(self) -> tuple[int, ...]:
        return self._unknown_ids

    @property
    def prefix_ids(self) -> list[int]:
        return self._prefix

    @property
    def chat_template(self) -> str | None:
        return self._template

    def to_dict(self) -> dict[str, Any]:
        content: dict[str, Any] = {
            "kind": self.kind,
            "end_of_text": self._end,
            "content": self.content,
        }
        if self._template is not None:
            content["chat_template"] = self._template
        if len(self._end_ids) > 1:
            content["more_ends"] = list(self._end_ids[1:])
        return content

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ImportedTokenizer:
        template, more = content.get("chat_template", ""), content.get("more_ends", [])
        if not isinstance(content["content"], dict) or not isinstance(content["end_of_text"], str):
            raise InputError("it is not of this form")
        if not isinstance(template, str):
            raise InputError("its chat template is not text")
        if not isinstance(more, list) or not all(type(id) is int for id in more):
            raise InputError("its ends of a text are not ids")
        return cls(content["content"], content["end_of_text"], template or None, more)
