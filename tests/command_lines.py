"""Command lines that chance has made: verbs, flags, values, paths and surroundings, good and odd.

A case is a function of its number, and its text can be typed into a shell to see it again.
"""

from __future__ import annotations

import os
import platform
import random
import shlex
from dataclasses import dataclass
from pathlib import Path

from cli_place import words

from myllm.cli.main import VERBS, main
from myllm.cli.parse import Flag, flags_of

NUMBERS = (
    "0", "-1", "1", "2", "3", "1e-40", "1e40", "1e-9", "0.5", "nan", "inf", "-inf", "", "None",
    str(2**31), str(2**32), str(2**63), str(10**23), str(10**30), "1_0", " 1", "½", "x",
)  # fmt: skip
TEXTS = (
    "", " ", "x", "the moon", "-", "--", "-item", "a\nb", "\r", "a\0b", "\x1b[2J", "\u202e", "你",
    "\udcff", "None", "nan", "n" * 300, "../x", "a/b", "/", ".", "..", ".hidden", "con", "aux.txt",
    "a:b", "dot.", "blank ", "*", "'", '"', "$HOME", "%PATH%", "\\n", "utf-8", "utf-16", "idna",
    "base64", "rot13", "punycode", "unicode_escape", "undefined", "char", "bpe", "hf", "gguf",
    "q8_0", "q4_0", "cpu", "cuda", "cuda:7", "mps", "cpu:1", "gpt2", "llama", "modern", "124m",
    "adamw", "cosine", "wsd", "float16", "bfloat16", "float32", "replace", "end", "rollback",
    "story", "chars", "runs", "runs/story", "runs/story/step-000001", "data", "missing", "folder",
)  # fmt: skip
PATHS = (
    "story.txt", "story.txt", "lines.jsonl", "folder", "empty", "empty.txt", "binary.bin",
    "short.txt", "crlf.txt", "foreign.txt", "big5.txt", "loop", "dangling", "pipe", "/dev/null",
    "/dev/full", "/dev/stdin", "/proc/self/mem", "-", "missing.txt", "n" * 300, "a\0b",
    "\udcff.txt", "runs", "runs/story", "prepared", "story.txt/", "story.txt/x", "data", ".",
    "hf", "settings.toml", "bad.toml",
)  # fmt: skip
TINY = (
    "--d-model 8 --n-layers 1 --n-heads 2 --context-length 8 --batch-size 1 --max-steps 1 "
    "--dtype float32 --device cpu --kernels plain"
).split()
SHORT = {
    "train": TINY,
    "generate": ["--max-new-tokens", "2"],
    "write": ["--max-new-tokens", "2"],
    "chat": ["--max-new-tokens", "2"],
    "benchmark": "--d-model 8 --n-layers 1 --n-heads 2 --context-length 8 --iterations 1".split(),
}
# what loads a compiler, or another program's library; what lets a run be deleted that others need
LEFT_OUT = ("kernels", "verify", "yes")
SURROUNDINGS = (
    *["plain"] * 16, "no home", "no stdout", "no stderr", "no stdin", "full stdout",
    "reader left", "disk full", "disk fails", "small files", "narrow", "ascii",
)  # fmt: skip
WEIGHTS = {"train": 8, "generate": 6, "prepare": 4, "evaluate": 4, "benchmark": 0.2}


@dataclass(frozen=True)
class Case:
    """One command line, what it reads from standard input, and where it is run."""

    number: int
    args: list[str]
    stdin: bytes
    surroundings: str

    def __str__(self) -> str:
        line = shlex.join(["myllm", *self.args])
        return (
            f"case {self.number} ({self.surroundings}): {line.encode('unicode_escape').decode()}"
        )


def case(number: int) -> Case:
    """The command line of a number."""
    rng = random.Random(number)
    verb = rng.choices(list(VERBS), [WEIGHTS.get(verb, 2) for verb in VERBS])[0]
    args = [*_usual(rng, verb), *SHORT.get(verb, [])]
    flags = [flag for flag in flags_of(VERBS[verb].options) if flag.flag not in LEFT_OUT]
    for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 5))):
        args += _flag(rng, rng.choice(flags))
    if rng.random() < 0.03:
        args.insert(rng.randrange(len(args) + 1), rng.choice(("--", "--help", "-h", "-x", "--no")))
    stdin = rng.choice((b"", words(300).encode(), b"\xff\xfe\0", b"/probs\n/top-k 0\nx\n\n/x\n"))
    name = rng.choice((verb,) * 60 + ("", "tarin", "--version", "\udcff"))
    return Case(number, [name, *args], stdin, rng.choice(SURROUNDINGS))


def _usual(rng: random.Random, verb: str) -> list[str]:
    """What makes the verb work, mostly."""
    path = "story.txt" if rng.random() < 0.7 else rng.choice(PATHS)
    run = rng.choice(("story", "chars", "story", "missing", "runs/story", rng.choice(TEXTS)))
    usual = {
        "train": rng.choice(([path], [path], ["--resume", run], [path, "--from", run])),
        "generate": [rng.choice(TEXTS), "--run", run],
        "evaluate": [*rng.choice(([], [path])), "--run", run],
        "prepare": [path],
        "export": [run, *rng.choice(([], ["--out", "made"])), "--no-verify"],
        "import": [rng.choice(("hf", "hf", path))],
        "verify": [run],
        "inspect-batch": [run, rng.choice(NUMBERS)],
    }.get(verb, [])
    has_runs = verb not in ("prepare", "benchmark") and rng.random() < 0.95
    return usual + (["--runs-dir", "runs"] if has_runs else [])


def _flag(rng: random.Random, flag: Flag) -> list[str]:
    if flag.is_switch:
        return [rng.choice((f"--{flag.flag}", f"--no-{flag.flag}"))]
    numeric = int in flag.kinds or float in flag.kinds
    pool = NUMBERS if numeric and rng.random() < 0.9 else TEXTS + PATHS
    value = rng.choice(pool)
    if flag.positional:
        return [value] if not value.startswith("-") else []
    return rng.choice(([f"--{flag.flag}={value}"], [f"--{flag.flag}", value], [f"--{flag.flag}"]))


def make_place() -> None:
    """Fills the working folder with what the command lines name: runs, texts, odd files."""
    text = words(3000)
    for name in ("empty", "folder", "data"):
        os.mkdir(name)
    contents = {
        "story.txt": text.encode(),
        "folder/a.txt": text.encode(),
        "short.txt": b"short",
        "empty.txt": b"",
        "crlf.txt": text.replace("\n", "\r\n").encode(),
        "foreign.txt": ("你好世界" * 300).encode(),
        "big5.txt": ("你好世界\n" * 300).encode("big5"),
        "binary.bin": bytes(range(256)) * 8,
        "lines.jsonl": b'{"text": "the moon walks"}\n' * 80,
        f"data/python-docs-{platform.python_version()}.jsonl": b'{"text": "the moon"}\n' * 80,
        "settings.toml": b"seed = 3\n[model]\nbias = true\n",
        "bad.toml": b"[[model]]\nd_model = 'x'\n",
    }
    for name, content in contents.items():
        Path(name).write_bytes(content)
    os.symlink("loop", "loop")
    os.symlink("nowhere", "dangling")
    os.mkfifo("pipe")
    steps = ["--runs-dir", "runs", *TINY, "--max-steps", "2", "--eval-interval", "1", "--quiet"]
    for args in (
        ["train", "story.txt", "--tokenizer", "char", "--run", "chars", *steps],
        ["train", "story.txt", "--run", "story", *steps],
        ["prepare", "story.txt", "--out", "prepared"],
        ["export", "story", "--runs-dir", "runs", "--out", "hf", "--no-verify"],
    ):
        assert main(args) == 0
