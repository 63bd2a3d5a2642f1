"""Room: a Dockerfile and its checkout → what is wrong with it, without Docker.

    python tools/check_dockerfile.py

Checks that instructions parse, that what COPY names exists and is not ignored, that the base
image has a tag, that the last user is not root, that ENTRYPOINT is a command of pyproject.toml,
and that bash can parse every RUN. Knows nothing of what the commands do: only a build shows that.
(hadolint checks style and shell in more depth, but nothing that depends on this checkout.)
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

KNOWN = {
    *"ADD ARG CMD COPY ENTRYPOINT ENV EXPOSE FROM HEALTHCHECK".split(),
    *"LABEL ONBUILD RUN SHELL STOPSIGNAL USER VOLUME WORKDIR".split(),
}


class Instruction(NamedTuple):
    """One instruction, its lines joined."""

    line: int  # where it begins, from 1
    name: str
    value: str


def parse(text: str) -> list[Instruction]:
    """Joins continued lines and drops comments, which may stand between them.

    Raises:
        ValueError: a line begins with no instruction, or the last one is continued into nothing.
    """
    found: list[Instruction] = []
    joined, begin = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        begin = begin if joined else number
        joined += line.strip()
        if joined.endswith("\\"):
            joined = joined[:-1].rstrip() + " "
            continue
        name, _, value = joined.partition(" ")
        if name.upper() not in KNOWN or not value.strip():
            raise ValueError(f"line {begin}: not an instruction with its value: {joined}")
        found.append(Instruction(begin, name.upper(), value.strip()))
        joined = ""
    if joined:
        raise ValueError(f"line {begin}: the instruction is not finished: {joined}")
    return found


def is_ignored(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore leaves out a path: the last pattern for it or a parent decides."""
    ignored = False
    candidates = [path, *(str(parent) for parent in PurePosixPath(path).parents)][:-1]
    for pattern in patterns:
        plain = pattern.removeprefix("!").strip("/")
        # `**/` stands for any number of folders, none included
        forms = [plain, plain.removeprefix("**/")]
        if any(fnmatch.fnmatchcase(name, form) for name in candidates for form in forms):
            ignored = not pattern.startswith("!")
    return ignored


def problems(root: Path, text: str | None = None) -> list[str]:
    """What is wrong, one line each.

    Args:
        root: the checkout: the build's context.
        text: of the Dockerfile, if not the one in `root`.
    """
    text = (root / "Dockerfile").read_text(encoding="utf-8") if text is None else text
    try:
        instructions = parse(text)
    except ValueError as error:
        return [str(error)]
    if not instructions or instructions[0].name not in ("FROM", "ARG"):
        return ["the first instruction is not FROM"]
    found = []
    for instruction in instructions:
        check = {"FROM": _check_from, "COPY": _check_copy, "RUN": _check_run}.get(instruction.name)
        if check is not None:
            found += [f"line {instruction.line}: {it}" for it in check(root, instruction.value)]
    last = {instruction.name: instruction.value for instruction in instructions}
    if last.get("USER", "root").split(":")[0] in ("root", "0"):
        found.append("the image runs as root: name another USER at its end")
    return found + _check_entrypoint(root, last.get("ENTRYPOINT"))


def _check_from(root: Path, value: str) -> list[str]:
    image = shlex.split(value)[0]
    tag = image.rpartition("/")[2].partition(":")[2]
    if "@sha256:" in image or tag not in ("", "latest"):
        return []
    return [f"FROM {image} has no fixed tag; such as python:3.12-slim"]


def _check_copy(root: Path, value: str) -> list[str]:
    words = shlex.split(value)
    if any(word.startswith("--from=") for word in words):
        return []
    sources = [word for word in words if not word.startswith("--")][:-1]
    if not sources:
        return [f"COPY {value} has no source or no destination"]
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line.strip() for line in lines if line.strip() and line[0] != "#"]
    found = []
    for source in sources:
        paths = [path.relative_to(root).as_posix() for path in root.glob(source)]
        if not paths:
            found.append(f"COPY {source}: no such file or folder")
        elif all(is_ignored(path, patterns) for path in paths):
            found.append(f"COPY {source}: .dockerignore leaves it out")
    return found


def _check_run(root: Path, value: str) -> list[str]:
    command = re.sub(r"^(--\S+\s+)+", "", value)
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    return [f"RUN {command}: {done.stderr.strip()}"] if done.returncode else []


def _check_entrypoint(root: Path, value: str | None) -> list[str]:
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    try:
        command = json.loads(value or "")[0]
    except (ValueError, KeyError, IndexError):
        return [f'ENTRYPOINT {value} is not in the form ["command"], which passes signals on']
    if command in project["scripts"]:
        return []
    return [f"ENTRYPOINT {command} is not among the scripts of pyproject.toml"]


def main() -> int:
    """Prints the problems; exits with 1 if there are any."""
    found = problems(Path(__file__).resolve().parents[1])
    print("\n".join(found) or "Dockerfile: nothing found")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
