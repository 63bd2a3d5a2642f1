"""Room: another program's `tokenizer.json` → a `Tokenizer` that gives the same ids."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from myllm.errors import InputError
from myllm.tokenizer.base import (
    END_OF_TEXT,
    NAME_TO_BYTE,
    EngineTokenizer,
    TextSource,
    Tokenizer,
)

MAX_BYTES = 1 << 30  # of a tokenizer.json; a vocabulary of millions, exported here, has less
ENDS = (END_OF_TEXT, "<|im_end|>", "<|end_of_text|>", "</s>", "<eos>")  # names of end of text
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # what SentencePiece writes for a space


class ImportedTokenizer(EngineTokenizer):
    """Byte-level or SentencePiece-like byte pairs (or characters), as another program has them.

    Encoding is the `tokenizers` library's, by the file's own rules (normalisation, cutting,
    merges), but for special tokens: their names in a text are text.
    """

    kind = "imported"

    def __init__(
        self, content: dict[str, Any], eos_token: str, chat_template: str | None = None
    ) -> None:
        """
        Args:
            content: of a `tokenizer.json`.
            eos_token: the name of the token that ends a text.
            chat_template: is kept for other programs.

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
        self._end_id = end
        self._bytes = self._all_bytes()
        self._prefix = self._ids_before("a")

    @classmethod
    def read(
        cls, path: Path, eos_token: str | None = None, chat_template: str | None = None
    ) -> ImportedTokenizer:
        """Reads a `tokenizer.json`.

        Args:
            path: the file.
            eos_token: the name of the token that ends a text; by default the first usual one.
            chat_template: is kept for other programs.

        Raises:
            InputError: no such file, or not one that is known here.
        """
        try:
            if path.stat().st_size > MAX_BYTES:
                raise InputError(f"{path} is larger than any tokenizer")
            content = json.loads(path.read_bytes().decode("utf-8"))
        except OSError as error:
            raise InputError(f"cannot read tokenizer {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is not valid JSON") from None
        if not isinstance(content, dict):
            raise InputError(f"{path} is not a tokenizer")
        text = json.dumps(content.get("added_tokens", []))
        end = eos_token or next((name for name in ENDS if json.dumps(name) in text), ENDS[0])
        try:
            return cls(content, end, chat_template)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    def _all_bytes(self) -> list[bytes]:
        """What each id stands for."""
        byte_level = "ByteLevel" in json.dumps(self.content.get("decoder"))
        special = {
            token["id"] for token in self.content.get("added_tokens", []) if token.get("special")
        }
        found = []
        for id in range(self._engine.get_vocab_size(with_added_tokens=True)):
            name = self._engine.id_to_token(id)
            if name is None:
                raise InputError("its ids are not 0, 1, 2 …")
            if id in special or id == self._end_id:
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
        return self._end_id

    @property
    def eos_token(self) -> str:
        return self._end

    @property
    def prefix_ids(self) -> list[int]:
        return self._prefix

    @property
    def chat_template(self) -> str | None:
        return self._template

    def to_dict(self) -> dict[str, Any]:
        more = {} if self._template is None else {"chat_template": self._template}
        return {"kind": self.kind, "end_of_text": self._end, "content": self.content, **more}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ImportedTokenizer:
        template = content.get("chat_template", "")
        if not isinstance(content["content"], dict) or not isinstance(content["end_of_text"], str):
            raise InputError("it is not of this form")
        if not isinstance(template, str):
            raise InputError("its chat template is not text")
        return cls(content["content"], content["end_of_text"], template or None)
