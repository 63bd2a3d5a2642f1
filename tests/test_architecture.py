"""The house: who may import whom, and what the product must not contain."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "myllm"
TOKENIZERS = {"tokenizer_base", "char_tokenizer", "bpe_tokenizer", "imported_tokenizer"}
LOW = TOKENIZERS | {"errors", "registry", "config", "tokenizer"}
MIDDLE = LOW | {
    "cache",
    "model",
    "optim",
    "device",
    "sources",
    "data",
    "dataset",
    "debug",
    "corpora",
}
HIGH = MIDDLE | {"checkpoint", "weights", "evaluate", "acceleration", "progress"}
VERB = {"api", "config", "errors", "parse", "verb"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli"},
    "errors": set(),
    "registry": {"errors"},
    "config": {"errors", "registry"},
    "tokenizer_base": {"errors", "registry"},
    "imported_tokenizer": {"errors", "tokenizer_base"},
    "tokenizer": {"errors", "imported_tokenizer", "tokenizer_base"},
    "layouts": {"config", "errors", "registry"},
    "model_card": LOW | {"checkpoint"},
    "hf_export": LOW | {"checkpoint", "layouts", "model_card", "storage"},
    "hf_import": LOW | {"checkpoint", "hf_export", "layouts", "model", "progress", "storage"},
    "gguf_tokenizer": LOW,
    "gguf_export": LOW | {"checkpoint", "layouts", "gguf_tokenizer", "model", "storage"},
    "onnx_export": LOW | {"checkpoint", "hf_export", "model", "storage", "weights"},
    "readers": LOW | {"checkpoint", "model", "weights"},
    "compare": LOW | {"checkpoint", "machine", "readers"},
    "formats": LOW
    | {"checkpoint", "compare", "gguf_export", "hf_export", "onnx_export", "readers"},
    "device": {"config", "errors", "registry"},
    "cache": {"config", "errors"},
    "dropout": set(),
    "model": {"cache", "config", "dropout", "errors", "registry"},
    "optim": {"config", "errors", "registry"},
    "corpora": {"errors", "registry"},
    "sources": {"config", "errors", "registry"},
    "atomic": {"errors", "registry"},
    "signals": {"errors", "registry"},
    "safetensors_adapter": set(),
    "token_file": LOW | {"atomic"},
    "prepare": LOW | {"atomic", "sources", "token_file"},
    "dataset": {"errors", "registry"},
    "checkpoint": {"atomic", "errors", "safetensors_adapter"},
    "run_folder": LOW | {"atomic", "checkpoint", "progress"},
    "weights": LOW | {"checkpoint", "model", "run_folder"},
    "saving": {"checkpoint", "errors", "run_folder"},
    "verify": LOW | {"atomic", "checkpoint", "progress", "run_folder"},
    "progress": {"debug"},
    "evaluate": LOW | {"model"},
    "acceleration": LOW | {"model", "evaluate"},
    "decode": {"cache", "model"},
    "sampling": {"config"},
    "generate": LOW | {"cache", "decode", "model", "sampling", "device", "checkpoint", "weights"},
    "chat": LOW | {"generate"},
    "harness": LOW | {"generate"},
    "step": LOW | {"dataset", "device", "loss", "model", "optim", "schedules", "torch_adapter"},
    "train": HIGH | {"observer", "profiler", "saver", "signals", "step"},
    "benchmark": HIGH,
    "machine": set(),
    "memory": LOW | {"dataset", "device", "loss", "machine", "model", "optim", "torch_adapter"},
    "presets": {"config", "registry"},
    "planner": {"benchmark", "compile", "config", "device", "errors", "model", "presets"},
    "terminal": set(),
    "display": {"metrics", "observer", "terminal", "token_file", "train"},
    "session": HIGH
    | {
        "memory",
        "planner",
        "prepare",
        "presets",
        "run_folder",
        "schedules",
        "token_file",
        "train",
    },
    "run": HIGH | {"formats", "generate", "prepare", "run_folder", "state", "verify"},
    "api": {
        *("benchmark", "config", "display", "errors", "generate", "hf_import", "observer"),
        *("prepare", "presets", "run", "run_folder", "session", "terminal", "token_file"),
    },
    "verb": set(),
    "parse": LOW | {"corpora", "presets"},
    "verbs_benchmark": VERB,
    "verbs_evaluate": VERB,
    "verbs_export": VERB | {"compare", "run", "terminal"},
    "verbs_generate": VERB | {"terminal"},
    "verbs_prepare": VERB,
    "verbs_train": VERB | {"presets", "run"},
    "verbs_verify": VERB | {"terminal"},
    "verbs_write": VERB | {"chat"},
    "cli": {
        *("device", "errors", "machine", "parse", "registry", "signals", "terminal", "verb"),
        *(path.stem for path in ROOT.glob("verbs_*.py")),
    },
}
WITHOUT_TORCH = LOW | {
    "presets",
    "parse",
    "verb",
    "terminal",
    "corpora",
    "machine",
    "sources",
    "atomic",
    "signals",
    "prepare",
    "token_file",
}


def tree_of(room: str) -> ast.Module:
    tree = ast.parse((ROOT / f"{room}.py").read_text(encoding="utf-8"))
    # what only runs as `python -m myllm.<room>` is the command line's
    tree.body = [node for node in tree.body if "__main__" not in ast.unparse(node).split("\n")[0]]
    return tree


def imports_of(room: str) -> set[str]:
    """The modules that a room imports anywhere, also inside its functions."""
    found: set[str] = set()
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "myllm":
                found |= {f"myllm.{alias.name}" for alias in node.names if alias.name[0] != "_"}
            else:
                found.add(node.module)
    return found


def test_every_room_is_in_the_table():
    assert {path.stem for path in ROOT.glob("*.py")} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_go_down(room):
    found = {name.split(".")[1] for name in imports_of(room) if name.startswith("myllm.")}
    assert found <= MAY_IMPORT[room]


def test_no_circles():
    """The table itself can be put into an order in which imports only go down."""
    left = dict(MAY_IMPORT)
    while left:
        free = [room for room, below in left.items() if not below & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", sorted(WITHOUT_TORCH))
def test_no_torch_in(room):
    assert not {name for name in imports_of(room) if name.split(".")[0] == "torch"}


def private_torch(tree: ast.Module) -> set[str]:
    """Private names of PyTorch that a room touches: `torch._x`, `from torch.x import _y`, strings
    that name a private module, and private attributes that PyTorch gives to its objects."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            known = node.attr in ("_cdata", "_compiled_call_impl", "_call_impl")
            names = [f"torch.{whole}" if known else whole]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value] if re.fullmatch(r"torch[\w.]+", node.value) else []
        found |= {n for n in names if re.match(r"torch\b.*\._(?!_)", n)}
    return found


def test_private_names_of_torch_are_recognised():
    lines = (
        "torch._foreach_mul_(a)",
        "import torch._inductor.config",
        "x = t._cdata",
        "from torch._subclasses import a",
        "from torch.optim import _b",
        "'torch._dynamo'",
    )
    assert all(private_torch(ast.parse(line)) for line in lines)
    assert not private_torch(ast.parse("torch.__version__; self._torch; torch.optim.adamw"))


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - {"torch_adapter"}))
def test_no_private_names_of_torch_in(room):
    """They are `torch_adapter`'s, whose tests tell when a new version breaks them."""
    assert not private_torch(tree_of(room))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_no_code_from_data(room):
    """No pickle, no evaluation of text, no torch.load."""
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "torch.load", "torch.save"), called
    assert not {"pickle", "marshal", "shelve"} & imports_of(room)


@pytest.mark.parametrize("room", set(MAY_IMPORT) - {"__init__", "__main__"})
def test_docstring_opens_with_the_room(room):
    assert (ast.get_docstring(tree_of(room)) or "").startswith("Room: ")


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_text_files_name_their_encoding(room):
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".read_text", ".write_text")
        ):
            assert "encoding" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


@pytest.mark.parametrize(
    "room",
    [
        "char_tokenizer",
        "bpe_tokenizer",
        "registry",
        "config",
        "cache",
        "model",
        "generate",
        "display",
    ],
)
def test_examples_in_docstrings(room):
    import doctest
    import importlib

    result = doctest.testmod(importlib.import_module(f"myllm.{room}"))
    assert not result.failed


NETWORK = {"socket", "http", "urllib", "requests", "httpx", "ssl", "ftplib", "huggingface_hub"}


@pytest.mark.parametrize("room", sorted(set(MAY_IMPORT) - {"corpora", "readers"}))
def test_no_network_in(room):
    """Law 9, by reading: only the room of downloads can reach the network; a reader of exports
    asks llama.cpp's server, which is in the same process."""
    assert not {name.split(".")[0] for name in imports_of(room)} & NETWORK


def test_nothing_from_the_network_is_needed(tmp_path, monkeypatch, longer_text):
    """Law 9, by trying: all verbs work where every connection is refused."""
    import socket

    from myllm.cli import main

    def refuse(*args, **kwargs):
        raise AssertionError(f"a connection was tried: {args}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text(longer_text, encoding="utf-8")
    tiny = "--d-model 16 --n-layers 1 --n-heads 2 --context-length 8 --max-steps 2 --device cpu"
    for command in (
        f"train text.txt {tiny}",
        "train --resume text --max-steps 3",
        "generate the --max-new-tokens 2",
        "evaluate text.txt",
        "prepare text.txt --out prepared",
    ):
        assert main(command.split()) == 0, command
