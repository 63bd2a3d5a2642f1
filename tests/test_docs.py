"""What README and docs say can be done, can be done."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from myllm.cli.main import VERBS, main
from myllm.cli.parse import parse
from myllm.cli.verb import joined
from myllm.config import to_toml
from myllm.presets import default_config
from myllm.tokenizer import TOKENIZERS, CharTokenizer

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DEVELOPMENT = (ROOT / "docs" / "development.md").read_text(encoding="utf-8")
BENCHMARKS = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")
EXPORT = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
USAGE = (ROOT / "docs" / "usage.md").read_text(encoding="utf-8")
DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
FILES = (ROOT / "docs" / "files.md").read_text(encoding="utf-8")
TOUR = (ROOT / "docs" / "tour.md").read_text(encoding="utf-8")
PAGES = [README, USAGE, DATA, FILES, TOUR, DEVELOPMENT, BENCHMARKS, EXPORT, RELIABILITY]

TINY_MODEL = "--d-model 32 --n-layers 1 --n-heads 2 --context-length 16 --batch-size 2".split()
SMALLER = {
    "verify": [],
    "export": [],
    "import": [],
    "from": "--max-steps 2 --device cpu".split(),
    "inspect-batch": [],
    "train": [*TINY_MODEL, *"--max-steps 2 --device cpu".split()],
    "resume": "--max-steps 3 --device cpu".split(),
    "generate": "--max-new-tokens 4 --device cpu".split(),
    "chat": "--max-new-tokens 4 --device cpu".split(),
    "write": "--max-new-tokens 4 --device cpu".split(),
    "evaluate": "--device cpu".split(),
    "prepare": [],
    "benchmark": [*TINY_MODEL, *"--iterations 2 --device cpu".split()],
}


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a Markdown text that are tagged with a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """The arguments of every `myllm …` in the bash blocks of a Markdown text."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    parts = [part.strip() for line in lines for part in re.split(r"&&|\|", line)]
    return [shlex.split(part, comments=True)[1:] for part in parts if part.startswith("myllm ")]


def transcripts(text: str) -> list[tuple[list[str], list[str]]]:
    """The arguments of every `$ myllm …` in the console blocks, and the lines below it."""
    found = []
    for block in blocks(text, "console"):
        first, *lines = block.splitlines()
        assert first.startswith("$ myllm ")
        found.append((shlex.split(first.removeprefix("$ myllm ")), lines))
    return found


def inline_commands() -> list[list[str]]:
    """The arguments of every `myllm …` with a flag in the running text: a flag has its verb."""
    running = re.sub(r"```.*?```", "", "".join(PAGES), flags=re.DOTALL)
    found = re.findall(r"`myllm ([^`]* --[^`]*)`", running)
    return [shlex.split(" ".join(text.split())) for text in found if "VERB" not in text]


# flags of ours that a help does not list, and those of other programs
OTHERS = {"--help", "--help-all", "--version", "--ignore-missing-imports"}


def as_pattern(lines: list[str]) -> str:
    """A regular expression for a transcript: numbers and what models wrote may differ, `…` stands
    for any lines."""
    number, quoted = r"\d[\d.,e+-]*", '(?<=  )".*"$'
    masked = [re.sub(quoted, "@", re.sub(number, "#", line)) for line in lines]
    escaped = [re.escape(m).replace(r"\#", number).replace("@", '".*"') for m in masked]
    return "\n".join("(?:.*\n)*.*" if line == "…" else text for line, text in zip(lines, escaped))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with all the files that the commands name."""
    monkeypatch.chdir(tmp_path)
    text = "Once upon a time there was a text, and it was short.\n" * 60
    for name in ("novel.txt", "novel2.txt", "notes/one.txt", "notes/two.md", "corpus/a.txt"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for block in blocks(USAGE, "toml"):
        name = block.splitlines()[0].removeprefix("# ")
        (tmp_path / name).write_text(block, encoding="utf-8")
    return tmp_path


@pytest.mark.slow
class TestExport:
    """The page on export, from above to below."""

    def test_transcripts_and_examples(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = [*SMALLER["train"], "--context-length", "128", "--run", "my-run"]
        assert main(["train", "novel.txt", *flags]) == 0
        for kind, block in re.findall(r"^```(console|python)\n(.*?)^```", EXPORT, re.M | re.S):
            capsys.readouterr()
            if kind == "python":
                done = subprocess.run(
                    [sys.executable, "-c", block], capture_output=True, text=True, encoding="utf-8"
                )
                assert done.returncode == 0 and done.stdout, done.stderr
                continue
            args, lines = transcripts(f"```console\n{block}```")[0]
            assert main([*args, *(SMALLER["from"] if "--from" in args else [])]) == 0
            out, err = capsys.readouterr()
            assert re.fullmatch(as_pattern(lines), (err + out).strip()), err + out


class TestREADME:
    def test_has_the_set_up_commands_as_single_lines(self) -> None:
        lines = [line for block in blocks(README, "bash") for line in block.splitlines()]
        assert "pip install -r requirements.txt && myllm train" in lines
        assert "pip install -r requirements-dev.txt && pytest tests/ -n auto" in lines

    def test_shows_every_verb(self) -> None:
        """The README and the page on usage, one of them."""
        shown = {joined(args, VERBS)[0] for args in commands(README + USAGE)}
        inline = set(re.findall(r"`myllm ([a-z-]+)", README + USAGE))
        assert shown | inline >= set(VERBS)

    def test_is_short(self) -> None:
        assert len(README.splitlines()) <= 120

    @pytest.mark.parametrize(
        "args",
        commands("".join(PAGES)) + inline_commands() + [args for args, _ in transcripts(EXPORT)],
        ids=shlex.join,
    )
    def test_every_command_is_understood(self, args: list[str], folder: Path) -> None:
        for name in ("my-run", "base"):  # for --resume and --from, which read their settings
            run = folder / "checkpoints" / name
            run.mkdir(parents=True)
            (run / "config.toml").write_text(to_toml(default_config()), encoding="utf-8")
        args = joined(args, VERBS)
        options, _ = VERBS[args[0]]
        assert isinstance(parse(options, args[0], args[1:]), options)

    @pytest.mark.parametrize("text", PAGES, ids=lambda text: text[2:20].splitlines()[0])
    def test_every_flag_exists(self, text: str, capsys: pytest.CaptureFixture[str]) -> None:
        for verb in VERBS:
            assert main([verb, "--help-all"]) == 0
        known = set(re.findall(r"--[a-z][a-z-]*", capsys.readouterr().out))
        text = re.sub(r"(?s)<!-- names: begin -->.*<!-- names: end -->", "", text)  # theirs, ours
        # what belongs to other programs: in their own lines only
        lines = [
            line
            for line in text.splitlines()
            if not re.match(r"(pytest|black|isort|fl|python|lm-eval|#SBATCH)", line)
        ]
        named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", "\n".join(lines)))
        assert named - known - OTHERS == set()

    @pytest.mark.slow
    def test_every_command_does_its_work(self, folder: Path) -> None:
        for args in commands(README + USAGE):
            if "--data" in args:  # the one that needs the network
                continue
            kinds = [kind for kind in ("resume", "from") if f"--{kind}" in args]
            args += SMALLER.get((kinds or args)[0], [])
            if args[:2] == ["runs", "delete"]:
                args.append("--yes")
            if "--config" in args:
                args += ["--n-heads", "2"]
            if args[0] == "inspect-batch":
                args[-1] = "1"  # the run of the test has few steps
            text = (
                "Once upon\n/probs\n/quit\n" if args[0] == "write" else "On and on it went. " * 99
            )
            done = subprocess.run(
                [sys.executable, "-m", "myllm", *args],
                input=text.encode(),
                capture_output=True,
                cwd=folder,
                timeout=300,
            )
            assert (
                done.returncode == 0
            ), f"{shlex.join(args)}\n{done.stderr.decode(errors='replace')}"
            assert done.stdout.strip(), shlex.join(args)


class Example(NamedTuple):
    """A kind that the guide adds: its file, what to try with it, and its line in a table."""

    path: Path
    file: str
    table: str
    line: str
    trial: str

    @property
    def name(self) -> str:
        return self.line.split('"')[1]


def examples() -> list[Example]:
    """The kinds that the guide adds."""
    block = r"```python\n(.*?)^```\n"
    named = r"^Line in `myllm/kinds.py`, `(\w+)`: `([^\n]*)`\n"
    pattern = rf"^File `(\S+)`:\n\n{block}\n{named}\n{block}"
    found = re.findall(pattern, DEVELOPMENT, re.MULTILINE | re.DOTALL)
    return [Example(Path(path), *rest) for path, *rest in found]


CACHES = shutil.ignore_patterns("__pycache__", ".*")
OVER_TABLES = "tokenizer model optim parse architecture config contradictions".split()


class TestDevelopment:
    @pytest.mark.parametrize("example", examples(), ids=lambda example: example.path.stem)
    def test_example_runs_as_it_is(self, example: Example, tmp_path: Path) -> None:
        assert max(map(len, example.file.splitlines())) <= 99  # as flake8 is asked to
        path = tmp_path / "example.py"
        path.write_text(f"{example.file}\n{example.trial}", encoding="utf-8")
        done = subprocess.run([sys.executable, str(path)], capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode(errors="replace")

    def test_there_is_an_example_of_each_kind(self) -> None:
        tables = [example.table for example in examples()]
        assert tables == ["TOKENIZERS", "ATTENTIONS", "SCHEDULES"]
        assert 2 * len(tables) == len(blocks(DEVELOPMENT, "python"))

    @pytest.mark.slow
    def test_a_copy_with_the_examples_passes_the_tests(self, tmp_path: Path) -> None:
        """What the guide says to do, done: help knows the new kinds, tests run over them."""
        for folder in ("myllm", "tests", "docs"):
            shutil.copytree(ROOT / folder, tmp_path / folder, ignore=CACHES)
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, tmp_path)
        kinds = tmp_path / "myllm" / "kinds.py"
        for example in examples():
            (tmp_path / example.path).write_text(example.file, encoding="utf-8")
            table = re.compile(rf"^({example.table}: .*\{{)$", re.MULTILINE)
            text, n = table.subn(rf"\1\n    {example.line}", kinds.read_text(encoding="utf-8"))
            assert n == 1
            kinds.write_text(text, encoding="utf-8")
        environment = {**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}

        def python(*args: str) -> str:
            done = subprocess.run(
                [sys.executable, *args], cwd=tmp_path, env=environment, capture_output=True,
                text=True, encoding="utf-8", timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout

        python("tests/test_architecture.py")
        known = python("-m", "myllm", "train", "--help-all")
        for example in examples():
            assert example.name in known
        tests = [f"tests/test_{name}.py" for name in OVER_TABLES]
        python("-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests)

    def test_registering_is_all_that_a_new_kind_needs(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from myllm.model import ATTENTIONS, FlashAttention
        from myllm.train.schedules import SCHEDULES

        class Mine(CharTokenizer):
            kind = "mine"

        monkeypatch.setitem(TOKENIZERS, "mine", Mine)
        monkeypatch.setitem(ATTENTIONS, "mine", FlashAttention)
        monkeypatch.setitem(SCHEDULES, "mine", lambda progress: 1.0)
        chosen = ["--tokenizer", "mine", "--attention", "mine", "--schedule", "mine"]
        chosen += ["--vocab-size", "0"]
        assert main(["train", "novel.txt", "--quiet", *SMALLER["train"], *chosen]) == 0


PYTHON = [
    pytest.param(block, id=f"{page[2:12].strip()}-{i}")
    for page in (README, USAGE, TOUR)
    for i, block in enumerate(blocks(page, "python"))
]


@pytest.mark.slow
@pytest.mark.parametrize("block", PYTHON)
def test_python_runs_as_it_stands(block: str, folder: Path) -> None:
    """But for a smaller model and fewer steps."""
    tiny = "max_steps=2, d_model=32, n_layers=1, n_heads=2, context_length=16, batch_size=2"
    smaller = block.replace("max_steps=300", f"{tiny}, vocab_size=300, device='cpu'")
    done = subprocess.run(
        [sys.executable, "-c", smaller], capture_output=True, text=True, encoding="utf-8"
    )
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_tour_has_an_experiment_for_each_file() -> None:
    """Nine files that exist, with code to try, and what they borrow explained."""
    files = re.findall(r"^## \d \[`(myllm/[\w/]+\.py)`\]", TOUR, re.MULTILINE)
    assert len(files) == len(blocks(TOUR, "python")) == 9
    lines = sum(len((ROOT / f).read_text(encoding="utf-8").splitlines()) for f in files)
    assert abs(lines - int(re.findall(r"about ([\d,]+) lines", TOUR)[0].replace(",", ""))) < 150
