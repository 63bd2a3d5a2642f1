"""Room: a path → the folder of a Hugging Face model there, its texts, its files of weights.

Knows nothing of what is in them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from myllm.errors import InputError
from myllm.formats.hf_export import INDEX, WEIGHTS
from myllm.system.atomic import Damaged, read_file

CONFIG = "config.json"
MAX_BYTES = 1 << 30  # of a text; the tokenizer.json of a vocabulary of millions has less
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
LFS_POINTER = "version https://git-lfs.github.com/spec/"  # how such a text begins
SHARD = re.compile(r"([\w.-]+)-(\d+)-of-(\d+)\.safetensors")


def find_folder(path: Path) -> Path:
    """The folder of the one model at a path: its own, one in it, one of the cache of the Hub, or
    that of a file of the model.

    Raises:
        InputError: there is none, or there are several.
    """
    try:
        if path.is_file():
            return _folder_of(path)
        if not path.is_dir():
            raise InputError(f"{path} is not a folder: give one that is on this machine")
        inside = sorted(folder for folder in path.iterdir() if folder.is_dir())
        found = _models_at(path) or [model for folder in inside for model in _models_at(folder)]
    except OSError as error:
        raise InputError(f"{error.filename or path} cannot be read: {error.strerror}") from None
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(str(folder) for folder in found[:5])
        raise InputError(f"{path} has {len(found)} models in it, name one of them: {names}")
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"{path} is an adapter, which changes another model: merge it into that with its own "
            "program (peft: merge_and_unload), save the whole, and import this"
        )
    if any(path.glob("*.gguf")):
        raise InputError(_no_gguf(path))
    raise InputError(f"{path / CONFIG} is missing: a folder that transformers loads has one")


def _models_at(folder: Path) -> list[Path]:
    """The folder itself if it is a model's; of the Hub's cache the snapshots in use."""
    if is_named(folder / CONFIG):
        return [folder]
    snapshots = folder if folder.name == "snapshots" else folder / "snapshots"
    if not snapshots.is_dir():
        return []
    chosen = snapshots.parent / "refs" / "main"
    if chosen.is_file() and (found := _models_at(snapshots / read_text(chosen).strip())):
        return found
    return [path for path in sorted(snapshots.iterdir()) if (path / CONFIG).is_file()]


def _folder_of(path: Path) -> Path:
    """The folder that a file of a model is in."""
    if path.suffix.lower() == ".gguf":
        raise InputError(_no_gguf(path))
    if path.suffix.lower() in PICKLES:
        raise InputError(_no_pickles(path))
    known = path.suffix == ".json" or path.name == WEIGHTS or SHARD.fullmatch(path.name)
    if not known or not (path.parent / CONFIG).is_file():
        raise InputError(f"{path} is not the folder of a model: name the one with its {CONFIG}")
    return path.parent


def model_name(path: Path, folder: Path) -> str:
    """What a model is called whose folder was found at a path."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots":  # models--<owner>--<name>/snapshots/<hash>
        return folder.parents[1].name.rpartition("--")[2]
    return (path if path.is_dir() else folder).resolve().name


def weight_files(folder: Path) -> list[Path]:
    """The files of weights, as transformers chooses them; parts are also found without an index.

    Raises:
        InputError: there are none that can be read, or one is missing.
    """
    if is_named(folder / WEIGHTS):
        names = [WEIGHTS]
    elif is_named(folder / INDEX):
        where = read_json(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, where.values()))) if isinstance(where, dict) else []
        if not names or not all(re.fullmatch(r"[\w.-]+\.safetensors", name) for name in names):
            raise InputError(f"{folder / INDEX} names files outside of its folder, or none")
    else:
        names = _parts(folder) or _refuse_weights(folder)
    for name in names:
        _check_there(folder / name)
    return [folder / name for name in names]


def _parts(folder: Path) -> list[str]:
    """The names of all parts of a model whose index is missing, by the names of those there."""
    found = [SHARD.fullmatch(path.name) for path in sorted(folder.glob("*.safetensors"))]
    kinds = {(match[1], match[3]) for match in found if match}
    if len(kinds) > 1:
        raise InputError(f"{folder} has parts of several models, and no {INDEX} that says which")
    return [
        f"{stem}-{part:0{len(total)}d}-of-{total}.safetensors"
        for stem, total in kinds
        for part in range(1, min(int(total), 100_000) + 1)
    ]


def _refuse_weights(folder: Path) -> list[str]:
    """Says what is there in place of weights that can be read."""
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    if any(name.endswith(PICKLES) for name in files):
        raise InputError(_no_pickles(folder))
    if any(name.endswith(".gguf") for name in files):
        raise InputError(_no_gguf(folder))
    others = [n for n in files if n.endswith((".safetensors", ".h5", ".msgpack", ".npz", ".onnx"))]
    told = f"; it has {', '.join(others[:5])}, which is not what transformers loads"
    raise InputError(f"{folder} has no {WEIGHTS}{told if others else ''}")


def _no_pickles(path: Path) -> str:
    return (
        f"{path} has its weights as pickles, which can run any code when they are read: get the "
        "safetensors of this model, or convert it with its own program's save_pretrained"
    )


def _no_gguf(path: Path) -> str:
    return f"{path}: GGUF cannot be imported yet; give the Hugging Face folder of this model"


def is_named(path: Path) -> bool:
    """Whether there is such a name: also a link that leads nowhere, of a broken download."""
    return path.is_file() or path.is_symlink()


def _check_there(path: Path) -> None:
    """Raises `InputError` if a file is not there, or only what stands for it."""
    if not path.is_file():
        what = "is a link to a file that is not there" if path.is_symlink() else "is missing"
        raise InputError(f"{path} {what}: get it, or the whole model again")
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER.encode():
        raise InputError(
            f"{path} is a pointer of Git LFS in place of the file: run git lfs pull where the "
            "model was cloned"
        )


def read_text(path: Path) -> str:
    """A text file, without a byte order mark.

    Raises:
        InputError: it cannot be read.
    """
    try:
        _check_there(path)
        return read_file(path, MAX_BYTES)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    except Damaged as error:
        raise InputError(str(error)) from None


def read_json(path: Path) -> dict[str, Any]:
    """What a JSON file says, without what it says nothing of (`null`).

    Raises:
        InputError: it cannot be read.
    """
    try:
        content = json.loads(read_text(path))
    except InputError:
        raise
    except (ValueError, RecursionError):
        raise InputError(f"{path} is not valid JSON") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object")
    return {name: value for name, value in content.items() if value is not None}


def read_json_if_there(path: Path) -> dict[str, Any]:
    """As `read_json`; nothing where there is no such file."""
    return read_json(path) if is_named(path) else {}
