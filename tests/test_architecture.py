"""The house: which wing may import which, and what the product must not contain.

`python tests/test_architecture.py` writes the table of docs/development.md anew.
"""

from __future__ import annotations

import ast
import doctest
import importlib
import re
import subprocess
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
ROOT = PROJECT / "myllm"
PAGE = PROJECT / "docs" / "development.md"
BEGIN, END = "<!-- rooms: begin -->", "<!-- rooms: end -->"
MAX_LINES, MAX_FUNCTION_LINES = 400, 50

GROUND = {"errors", "foreign", "registry", "checks", "kinds"}
LOW = GROUND | {"config", "presets", "reading", "system"}
TEXT = LOW | {"tokenizer"}
MIDDLE = TEXT | {"data", "kernels", "model", "runs"}
# wing, or file beside the wings → the others that it may import
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "foreign": set(),
    "registry": {"errors", "foreign"},
    "checks": {"errors"},
    "kinds": {"registry"},
    "reading": GROUND,
    "config": GROUND | {"reading"},
    "presets": GROUND | {"config"},
    "system": GROUND | {"config"},
    "tokenizer": GROUND,
    "data": TEXT,
    "model": GROUND | {"config"},
    "runs": TEXT | {"model"},
    "kernels": GROUND | {"config", "model", "system"},
    "train": MIDDLE,
    "generate": MIDDLE,
    "formats": MIDDLE | {"generate", "train"},
    "display": MIDDLE | {"train"},
    "run": MIDDLE | {"formats", "generate", "train"},
    "speeds": MIDDLE | {"generate", "train"},
    "api": MIDDLE | {"display", "formats", "generate", "run", "speeds", "train"},
    "cli": MIDDLE | {"api", "display", "formats", "generate", "run", "speeds", "train"},
    "__init__": set(),  # hands on what `api` and others define, when it is asked for
    "__main__": {"cli"},
}
WITHOUT_TORCH = {
    "errors",
    "registry",
    "kinds",
    "checks",
    "reading",
    "config",
    "presets",
    "tokenizer",
}
WITHOUT_TORCH |= {
    f"data.{room}" for room in ("sources", "corpora", "prepare", "token_file", "encode")
}
SYSTEM = "machine signals terminal atomic locks streams patience progress".split()
WITHOUT_TORCH |= {f"system.{room}" for room in SYSTEM}
WITHOUT_TORCH |= {"cli.main", "cli.parse", "cli.help", "cli.completion", "cli.advice"}
WITHOUT_TORCH |= {"cli.runs", "cli.cleanup"}
WITHOUT_TORCH |= {f"runs.{room}" for room in ("folder", "summary", "compare", "remove")}
NETWORK = {"socket", "http", "urllib", "requests", "httpx", "ssl", "ftplib", "huggingface_hub"}


def room_of(path: Path) -> str:
    """`train.step` of `myllm/train/step.py`, `train` of `myllm/train/__init__.py`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {room_of(path): path for path in sorted(ROOT.rglob("*.py"))}
ROOMS = list(FILES)
INSIDE = [room for room in ROOMS if room not in ("__init__", "__main__")]


def wing_of(room: str) -> str:
    return room.split(".")[0]


@cache
def tree_of(room: str) -> ast.Module:
    return ast.parse(FILES[room].read_text(encoding="utf-8"))


def imports_of(room: str, at_once: bool = False) -> set[str]:
    """The modules that a room imports: anywhere, or only those that importing it imports."""
    found: set[str] = set()
    for node in _imports(tree_of(room), at_once):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0 and node.module, f"{room}: imports are written out"
        for alias in node.names:
            full = f"{node.module}.{alias.name}"
            found.add(full if full.removeprefix("myllm.") in FILES else node.module)
    return found


def _imports(node: ast.AST, at_once: bool) -> list[ast.Import | ast.ImportFrom]:
    found: list[ast.Import | ast.ImportFrom] = []
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            found.append(child)
        elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue  # for readers of types only
        elif not (at_once and isinstance(child, (ast.FunctionDef, ast.Lambda))):
            found += _imports(child, at_once)
    return found


def rooms_imported_by(room: str, at_once: bool = False) -> set[str]:
    """The rooms of this program among them."""
    names = {name.removeprefix("myllm.") for name in imports_of(room, at_once) if "myllm" in name}
    return {"__init__" if name == "myllm" else name for name in names} & set(FILES)


def test_every_wing_is_in_the_table():
    assert {wing_of(room) for room in ROOMS} == set(MAY_IMPORT)


@pytest.mark.parametrize("room", [room for room in ROOMS if not room.endswith("__main__")])
def test_imports_go_down(room):
    wing = wing_of(room)
    others = {wing_of(found) for found in rooms_imported_by(room)} - {wing, "__init__"}
    assert others <= MAY_IMPORT[wing]


@pytest.mark.parametrize("level", ["wings", "files"])
def test_no_circles(level):
    """Wings, and the files inside of them, can be put into an order in which imports go down."""
    if level == "wings":
        left = {wing: below - {wing} for wing, below in MAY_IMPORT.items()}
    else:
        starters = {"__init__", "train.__main__"}  # python -m myllm.train is the command line
        left = {r: rooms_imported_by(r) - {r, *starters} for r in ROOMS if r not in starters}
    while left:
        free = [room for room, below in left.items() if not below & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


@pytest.mark.parametrize("room", ROOMS)
def test_torch_is_imported_where_it_is_needed(room):
    """Help, settings and the rooms of text answer without it: it takes seconds."""
    if room not in WITHOUT_TORCH and wing_of(room) not in WITHOUT_TORCH:
        return
    seen, waiting = set(), {room}
    while waiting:
        found = waiting.pop()
        seen.add(found)
        assert not {name for name in imports_of(found, True) if name.split(".")[0] == "torch"}
        packages = {found.rpartition(".")[0]} & set(FILES)  # importing a room imports its wing
        waiting |= (rooms_imported_by(found, True) | packages) - seen


@pytest.mark.parametrize("room", ROOMS)
def test_no_code_from_data(room):
    """No pickle, no evaluation of text, no torch.load."""
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("eval", "exec", "compile", "torch.load", "torch.save"), called
    assert not {"pickle", "marshal", "shelve"} & imports_of(room)


@pytest.mark.parametrize("room", [room for room in ROOMS if room != "system.torch_adapter"])
def test_private_names_of_torch_are_in_the_adapter(room):
    names = [name for name in imports_of(room) if name.split(".")[0] == "torch"]
    names += [
        ast.unparse(node)
        for node in ast.walk(tree_of(room))
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("torch.")
    ]
    assert not [name for name in names if re.search(r"\._[a-z]", name)]


@pytest.mark.parametrize("room", INSIDE)
def test_docstring_opens_with_the_room(room):
    assert (ast.get_docstring(tree_of(room)) or "").startswith("Room: ")


@pytest.mark.parametrize("room", ROOMS)
def test_files_and_functions_are_short(room):
    """More says that a concept in there wants its own name."""
    assert len(FILES[room].read_text(encoding="utf-8").splitlines()) <= MAX_LINES
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, node.name


@pytest.mark.parametrize("room", ROOMS)
def test_text_files_name_their_encoding(room):
    for node in ast.walk(tree_of(room)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
            (".read_text", ".write_text")
        ):
            assert "encoding" in {keyword.arg for keyword in node.keywords}, ast.unparse(node)


# those of the Python face need a trained run: tests/test_api.py has one
WITH_EXAMPLES = [
    room
    for room in sorted(set(ROOMS) - {"api", "run"})
    if ">>> " in FILES[room].read_text(encoding="utf-8")
]


@pytest.mark.parametrize("room", WITH_EXAMPLES)
def test_examples_in_docstrings(room, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = "myllm" if room == "__init__" else f"myllm.{room}"
    result = doctest.testmod(importlib.import_module(name))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("room", sorted(set(ROOMS) - {"data.corpora", "formats.readers"}))
def test_no_network_in(room):
    """Law 9, by reading: only the room of downloads can reach the network, and the one that asks
    llama.cpp's server in this process."""
    assert not {name.split(".")[0] for name in imports_of(room)} & NETWORK


def table() -> str:
    """The rooms, what each does, and what it imports of the others: as it is, not as it may be."""
    lines = ["| room | in → out | imports |", "|---|---|---|"]
    for room in sorted(INSIDE, key=lambda room: (_height(wing_of(room)), room)):
        first = (ast.get_docstring(tree_of(room)) or "").split("\n\n")[0]
        sentence = re.split(r"\.(?:\s|$)", " ".join(first.split()))[0].removeprefix("Room: ")
        found = sorted(rooms_imported_by(room) - {"__init__"})
        own = wing_of(room)
        shown = [name if wing_of(name) != own else f"·{name.rpartition('.')[2]}" for name in found]
        path = FILES[room].relative_to(ROOT).as_posix()
        lines.append(f"| `{path}` | {sentence} | {', '.join(shown) or '–'} |")
    return "\n".join(lines)


def _height(wing: str) -> int:
    return 1 + max((_height(below) for below in MAY_IMPORT[wing]), default=0)


def test_the_guide_states_what_is_imported():
    page = PAGE.read_text(encoding="utf-8")
    found = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert found == table(), "python tests/test_architecture.py writes it anew"


@pytest.mark.skipif(not (PROJECT / ".git").exists(), reason="not a checkout")
def test_no_room_is_ignored_by_git():
    """A pattern meant for what users make (`data/`) once kept a file of a wing out of it."""
    words = "git ls-files --others --ignored --exclude-standard myllm".split()
    found = subprocess.run(words, cwd=PROJECT, capture_output=True, check=True).stdout.decode()
    assert not [name for name in found.splitlines() if name.endswith((".py", ".typed"))]


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


if __name__ == "__main__":
    content = PAGE.read_text(encoding="utf-8")
    before, _, rest = content.partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")
