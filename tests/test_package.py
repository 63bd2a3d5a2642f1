"""The package as users install it: the wheel, in an environment that does not know the checkout.

An editable installation finds every file of the checkout, so it hides what a wheel lacks.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

import myllm

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
TINY = "--d-model 32 --n-layers 1 --n-heads 2 --context-length 16 --max-steps 2 --device cpu"


def call(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without variables that lead to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env={**environment, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"},
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        timeout=300,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no earlier build is packed and the checkout stays clean. Without
    isolation, as that would fetch setuptools from the network."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    shutil.copytree(ROOT / "myllm", source / "myllm", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = "--no-deps --no-build-isolation --no-index --quiet --wheel-dir".split()
    call(sys.executable, "-m", "pip", "wheel", source, *options, place / "dist", cwd=place)
    (built,) = (place / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def scripts(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a fresh environment that has only the wheel, and the other
    packages of this one by their path: files that start an editable installation are not read
    from there."""
    place = tmp_path_factory.mktemp("fresh")
    venv.create(place, symlinks=os.name != "nt")
    (site_packages,) = (
        [place / "Lib" / "site-packages"]
        if os.name == "nt"
        else place.glob("lib/python*/site-packages")
    )
    folder = place / ("Scripts" if os.name == "nt" else "bin")
    pip = (sys.executable, "-m", "pip", "--python", folder / "python")
    call(*pip, "install", "--no-deps", "--no-index", "--quiet", wheel, cwd=place)
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site_packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a short text, away from the checkout."""
    text = "Once upon a time there was a text, and it was short.\n" * 60
    (tmp_path / "novel.txt").write_text(text, encoding="utf-8")
    return tmp_path


class TestWheel:
    def test_has_every_file_of_the_package(self, wheel: Path) -> None:
        packed = set(zipfile.ZipFile(wheel).namelist())
        files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "myllm").rglob("*.py")}
        assert files | {"myllm/py.typed"} <= packed

    def test_has_nothing_else(self, wheel: Path) -> None:
        folders = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
        assert folders == {"myllm", f"myllm-{myllm.__version__}.dist-info"}
        assert not [name for name in zipfile.ZipFile(wheel).namelist() if "__pycache__" in name]


class TestInstalled:
    def test_comes_from_the_wheel(self, scripts: Path, place: Path) -> None:
        code = "import myllm; print(myllm.__file__)"
        found = Path(call(scripts / "python", "-c", code, cwd=place).strip())
        assert scripts.parent.resolve() in found.resolve().parents
        assert call(scripts / "python", "-m", "myllm", "--version", cwd=place).split() == [
            "myllm",
            myllm.__version__,
        ]

    def test_trains_generates_and_exports(self, scripts: Path, place: Path) -> None:
        for command in (
            f"train novel.txt {TINY}",
            "generate Once --max-new-tokens 4 --device cpu",
            "export novel --to gguf --out novel.gguf",
            "export novel --to hf --out novel-hf",
        ):
            assert call(scripts / "myllm", *shlex.split(command), cwd=place).strip(), command
        assert (place / "novel.gguf").stat().st_size > 0
        assert (place / "novel-hf" / "config.json").is_file()
