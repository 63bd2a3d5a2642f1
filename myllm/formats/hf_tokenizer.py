"""Room: the tokenizer's files of a Hugging Face folder → an `ImportedTokenizer`.

What a model's own program would tell it is spread over many files: `tokenizer.json`, or
`vocab.json` and `merges.txt`; `tokenizer_config.json`, `special_tokens_map.json`,
`generation_config.json` and `config.json` for the ends of a text; four places for a chat template.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from myllm.errors import InputError
from myllm.formats.gguf_tokenizer import QWEN2_CUT
from myllm.formats.hf_folder import is_named, read_json, read_json_if_there, read_text
from myllm.tokenizer import END_OF_TEXT
from myllm.tokenizer.imported import ImportedTokenizer

log = logging.getLogger(__name__)

ENDS = (END_OF_TEXT, "<|im_end|>", "<|end_of_text|>", "</s>", "<eos>")  # where no file names one
PAIRS = ("vocab.json", "merges.txt")
# whose vocab.json and merges.txt are read: by the class that they are for, or the layout
PAIRS_OF = {"GPT2Tokenizer": "gpt2", "Qwen2Tokenizer": "qwen3"}
ANY_CLASS = ("", "PreTrainedTokenizer", "TokenizersBackend")


def read_tokenizer(folder: Path, settings: dict[str, Any]) -> ImportedTokenizer:
    """The tokenizer of a folder, with the ends of a text and the chat template.

    Args:
        folder: the model's.
        settings: what its `config.json` says.

    Raises:
        InputError: a file is missing, or is not one that is known here.
    """
    configured = read_json_if_there(folder / "tokenizer_config.json")
    named = {**read_json_if_there(folder / "special_tokens_map.json"), **configured}
    path = folder / "tokenizer.json"
    if is_named(path):
        content = read_json(path)
    else:
        content, path = _byte_pairs(folder, configured, settings), folder / PAIRS[0]
    try:
        _add_tokens(content, folder, configured)
        _begin_texts(content, configured.get("add_bos_token"), _token_name(named, "bos_token"))
        end, more = _ends(content, _token_name(named, "eos_token"), folder, settings)
        return ImportedTokenizer(content, end, _chat_template(folder, configured), more)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (TypeError, LookupError, AttributeError, ValueError):
        raise InputError(f"{path} or what lies beside it is not of the form known here") from None


def _token_name(named: dict[str, Any], role: str) -> str | None:
    """The name of a special token, which stands alone or with other things said of it."""
    token = named.get(role)
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _byte_pairs(
    folder: Path, configured: dict[str, Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """The content of the `tokenizer.json` that `vocab.json` and `merges.txt` stand for."""
    if not all((folder / name).is_file() for name in PAIRS):
        have = [
            path.name for path in sorted(folder.iterdir()) if path.suffix in (".model", ".txt")
        ]
        raise InputError(
            f"{folder} has no tokenizer.json{f', only {have[0]}' if have else ''}; make one where "
            "transformers is installed: AutoTokenizer.from_pretrained(FOLDER)"
            ".save_pretrained(FOLDER)"
        )
    kind = str(configured.get("tokenizer_class", "")).removesuffix("Fast")
    cut = PAIRS_OF.get(kind, str(settings.get("model_type")) if kind in ANY_CLASS else "")
    if cut not in PAIRS_OF.values():
        raise InputError(
            f"{folder}: how {' and '.join(PAIRS)} of a {kind or cut} tokenizer cut texts is not "
            f"known here: {', '.join(PAIRS_OF)} are; a tokenizer.json says it"
        )
    from tokenizers import Regex
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    for name in PAIRS:
        read_text(folder / name)  # that it can be
    try:
        engine = Engine(models.BPE.from_file(*(str(folder / name) for name in PAIRS)))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(f"{folder}: {' and '.join(PAIRS)} are no byte pairs: {error}") from None
    space = bool(configured.get("add_prefix_space"))
    words = pre_tokenizers.ByteLevel(add_prefix_space=space, use_regex=cut == "gpt2")
    if cut == "gpt2":
        engine.pre_tokenizer = words
    else:
        split = pre_tokenizers.Split(Regex(QWEN2_CUT), "isolated")
        engine.pre_tokenizer = pre_tokenizers.Sequence([split, words])
        engine.normalizer = normalizers.NFC()
    engine.decoder = decoders.ByteLevel()
    content: dict[str, Any] = json.loads(engine.to_str())
    return content


def _add_tokens(content: dict[str, Any], folder: Path, configured: dict[str, Any]) -> None:
    """Adds the tokens that only the files beside the tokenizer know, at their ids."""
    vocab = content["model"]["vocab"]
    tokens = {
        int(id): {"content": token} if isinstance(token, str) else dict(token)
        for id, token in configured.get("added_tokens_decoder", {}).items()
        if str(id).isdecimal()
    }
    for name, id in read_json_if_there(folder / "added_tokens.json").items():
        tokens.setdefault(int(id), {"content": name})
    names = _names(content)
    taken = {*names.values(), None}
    for id, token in sorted(tokens.items(), key=lambda entry: entry[0]):
        text = token.get("content")
        if id in names or text in taken or not isinstance(vocab, dict):
            continue
        # in the vocabulary too: the tokenizers library would number it anew
        vocab[str(text)] = id
        rules = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        added = {"id": id, "content": text, **rules, "special": bool(token.get("special", True))}
        content["added_tokens"] = [*content.get("added_tokens", []), added]


def _names(content: dict[str, Any]) -> dict[int, str]:
    """The names of tokens by id."""
    vocab = content["model"]["vocab"]
    names = {id: name for name, id in vocab.items()} if isinstance(vocab, dict) else {}
    return names | {token["id"]: token["content"] for token in content.get("added_tokens") or []}


def _begin_texts(content: dict[str, Any], wanted: Any, begin: str | None) -> None:
    """What is put before a text, where the settings say it and not the tokenizer itself."""
    if not isinstance(wanted, bool):
        return
    id = next((id for id, name in _names(content).items() if name == begin), None)
    if not wanted or begin is None or id is None:
        content["post_processor"] = None
        return
    first, text = ({"id": name, "type_id": 0} for name in (begin, "A"))
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": first}, {"Sequence": text}],
        "pair": [{"Sequence": text}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {begin: {"id": begin, "ids": [id], "tokens": [begin]}},
    }


def _ends(
    content: dict[str, Any], named: str | None, folder: Path, settings: dict[str, Any]
) -> tuple[str, list[int]]:
    """The token that ends a text, and the ids of those that end it, too."""
    generation = read_json_if_there(folder / "generation_config.json")
    ids = generation.get("eos_token_id", settings.get("eos_token_id", []))
    ids = [id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int]
    names = _names(content)
    ends = [id for id in ids if id in names and not _is_text(content, id, names[id])]
    for id in set(ids) - set(ends):
        log.warning(
            "%s: eos_token_id %d is %s: it ends no text here",
            folder, id, f"the text {names[id]!r}" if id in names else "no token of its tokenizer",
        )  # fmt: skip
    if named is None and ends:
        named = names[ends[0]]
    if named is None:
        known = set(names.values())
        named = next((name for name in ENDS if name in known), ENDS[0])
    return named, [id for id in dict.fromkeys(ends) if names[id] != named]


def _is_text(content: dict[str, Any], id: int, name: str) -> bool:
    """Whether texts have this token: a character, a byte, or a pair joined."""
    if any(token["id"] == id for token in content.get("added_tokens") or []):
        return False
    if len(name) == 1 or re.fullmatch("<0x[0-9A-Fa-f]{2}>", name):
        return True
    pairs = content["model"].get("merges", [])
    return any(name == "".join(p.split(" ", 1) if isinstance(p, str) else p) for p in pairs)


def _chat_template(folder: Path, configured: dict[str, Any]) -> str | None:
    """How a conversation becomes a text; of several templates the one called `default`."""
    template = configured.get("chat_template")
    for path in (
        folder / "additional_chat_templates" / "default.jinja",
        folder / "chat_template.jinja",
    ):
        if path.is_file():
            template = read_text(path)
    if template is None:
        template = read_json_if_there(folder / "chat_template.json").get("chat_template")
    if isinstance(template, list):
        template = {
            entry.get("name"): entry.get("template")
            for entry in template
            if isinstance(entry, dict)
        }
    if isinstance(template, dict):
        only = next(iter(template.values()), None) if len(template) == 1 else None
        template = template.get("default", only)
    return template if isinstance(template, str) and template else None
