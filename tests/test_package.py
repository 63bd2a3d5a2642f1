"""The wheel, alone: what an editable installation hides, such as a folder that was left out."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import myllm

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--d-model 16 --n-layers 1 --n-heads 2 --context-length 16 --batch-size 2 --vocab-size 300 "
    "--max-steps 2 --device cpu"
).split()
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """The wheel of a copy of the checkout, so that no build folder is left here."""
    place = tmp_path_factory.mktemp("wheel")
    source = place / "source"
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "myllm", "pyproject.toml", "README.md",
         "LICENSE"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "-w", str(place))
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory) -> Path:
    """A new environment with the wheel; the packages that it needs are this environment's."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    scripts = folder / ("Scripts" if os.name == "nt" else "bin")
    pip("--python", str(scripts / "python"), "install", "--no-deps", str(wheel))
    packages = next(folder.glob("**/site-packages"))
    # a folder that is named in a .pth file is searched, but the .pth files in it are not read, so
    # that the editable installation of this environment is not seen
    own = sysconfig.get_path("purelib")
    (packages / "of_the_tests.pth").write_text(own + "\n", encoding="utf-8")
    return scripts


def pip(*args: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", *args]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def call(environment: Path, tmp_path: Path):
    """Runs a program of that environment, in a folder that has a text and no checkout."""
    text = "Once upon a time there was a text, and it was short.\n" * 60
    (tmp_path / "story.txt").write_text(text, encoding="utf-8")
    unset = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if name not in unset}

    def run(program: str, *args: str) -> str:
        done = subprocess.run(
            [str(environment / program), *args], cwd=tmp_path, env=env, capture_output=True,
            text=True, encoding="utf-8", timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    return run


def test_every_folder_is_in_the_wheel(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "myllm").rglob("*.py")}
    assert sources | {"myllm/py.typed"} <= packed


def test_it_is_the_wheel_that_is_imported(call, environment):
    found = Path(call("python", "-c", "import myllm; print(myllm.__file__)"))
    assert environment.parent in found.parents and ROOT not in found.parents
    assert call("python", "-m", "myllm", "--version") == f"myllm {myllm.__version__}"


def test_train_generate_export(call, tmp_path):
    call("myllm", "train", "story.txt", *TINY)
    assert call("myllm", "generate", "Once", "--max-new-tokens", "4").startswith("Once")
    for format, made in (("gguf", "story.gguf"), ("hf", "story-hf"), ("onnx", "story-onnx")):
        assert "written" in call("myllm", "export", "--to", format, "--no-verify")
        assert (tmp_path / made).exists()


def test_the_api(call):
    code = (
        "import myllm; run = myllm.train('story.txt', quiet=True, d_model=16, n_layers=1, "
        "n_heads=2, context_length=16, batch_size=2, vocab_size=300, max_steps=2, device='cpu'); "
        "print(run.generate('Once', max_new_tokens=3, ignore_end=True))"
    )
    assert call("python", "-c", code)
