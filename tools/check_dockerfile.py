"""Checks a Dockerfile for what can be checked without a Docker daemon.

python tools/check_dockerfile.py [FOLDER]     # exit code 1 and a line per fault

Known instructions, a base image with a tag, sources of COPY that exist and that `.dockerignore`
lets through, shell lines that bash can parse, a user who is not root, and an entry point that the
package installs.
"""

from __future__ import annotations

import fnmatch
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

KNOWN = set("FROM RUN COPY USER WORKDIR VOLUME ENTRYPOINT CMD ENV ARG LABEL EXPOSE".split())


def main() -> int:
    """Prints the faults; returns the exit code."""
    found = list(faults(Path(sys.argv[1] if len(sys.argv) > 1 else ".")))
    print("\n".join(found) or "Dockerfile: nothing wrong was found")
    return bool(found)


def faults(folder: Path) -> Iterator[str]:
    """What is wrong with the Dockerfile of a folder, a line each."""
    steps = list(instructions((folder / "Dockerfile").read_text(encoding="utf-8")))
    last = dict(steps)
    for name, rest in steps:
        if name not in KNOWN:
            yield f"{name}: not an instruction that is used here"
        elif name == "FROM" and not re.fullmatch(r"[\w./-]+:(?!latest$)[\w.-]+", rest):
            yield f"FROM {rest}: the image has no fixed tag"
        elif name == "RUN":
            done = subprocess.run(["bash", "-n"], input=rest, text=True, capture_output=True)
            if done.returncode:
                yield f"RUN {rest}: {done.stderr.strip()}"
        elif name == "COPY":
            yield from _copy_faults(folder, shlex.split(rest)[:-1])
    if last.get("USER", "root") == "root":
        yield "USER: the program would run as root"
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    if json.loads(last.get("ENTRYPOINT", "[null]"))[0] not in project["scripts"]:
        yield f"ENTRYPOINT: {last.get('ENTRYPOINT')} is not a program of the package"


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Each instruction's name and the rest of it, continued lines joined."""
    lines = [line for line in text.splitlines() if not re.match(r"\s*(#|$)", line)]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        yield name, rest.strip()


def _copy_faults(folder: Path, sources: list[str]) -> Iterator[str]:
    ignored = (folder / ".dockerignore").read_text(encoding="utf-8").split()
    for source in sources:
        if not (folder / source).exists():
            yield f"COPY {source}: there is no such file"
            continue
        out = False
        for pattern in ignored:  # the last one that fits decides, as Docker has it
            if fnmatch.fnmatch(source, pattern.removeprefix("!")):
                out = not pattern.startswith("!")
        if out:
            yield f"COPY {source}: .dockerignore leaves it out"


if __name__ == "__main__":
    raise SystemExit(main())
