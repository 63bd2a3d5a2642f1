"""Fixtures that the tests of several rooms share: small texts, tokenizers, models."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_place import TINY, Result, words
from exports import TEXT, odd_models
from hypothesis import settings
from tokenizers import Tokenizer as Engine

from myllm.cli import main
from myllm.config import GPTConfig
from myllm.model import GPTModel
from myllm.tokenizer import BPETokenizer, CharTokenizer

# The same inputs every time, so that a change is judged by what it changes; others are looked
# for with `--hypothesis-profile explore`.
settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore", derandomize=False, print_blob=True)
settings.load_profile("repeatable")

WORDS = "the a king queen rides walks to from old new city river and then speaks sings of".split()


def pytest_configure():
    """Signals that this process was started to ignore, as in the background, are sent by tests."""
    for name in ("SIGINT", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            default = signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL
            signal.signal(number, default)


@pytest.fixture(autouse=True)
def _one_thread():
    """Exact results hold for a thread count; tiny models are fastest with one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def pytest_collection_modifyitems(items):
    """A test that needs a GPU is skipped where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A working directory, so that data/ is in it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def here(folder: Path, longer_text: str) -> Path:
    """A working directory with a text to train on, `text.txt`."""
    Path("text.txt").write_text(longer_text, encoding="utf-8")
    return folder


@pytest.fixture
def sample_text() -> str:
    return "Hello, world! The quick brown fox jumps over the lazy dog.\n"


@pytest.fixture
def longer_text() -> str:
    rng = random.Random(1)
    lines = (" ".join(rng.choices(WORDS, k=rng.randint(4, 9))).capitalize() for _ in range(400))
    return ".\n".join(lines) + ".\n"


@pytest.fixture
def tokenizer(longer_text: str) -> CharTokenizer:
    return CharTokenizer().train(longer_text)


@pytest.fixture
def model_config() -> GPTConfig:
    return GPTConfig(
        vocab_size=61, context_length=16, d_model=32, n_layers=2, n_heads=4, dropout=0.0
    )


@pytest.fixture
def small_model(model_config: GPTConfig) -> GPTModel:
    torch.manual_seed(1)
    return GPTModel(model_config)


@pytest.fixture
def device() -> torch.device:
    return torch.device("cpu")


@pytest.fixture
def bpe() -> BPETokenizer:
    return BPETokenizer(300).train(TEXT)


@pytest.fixture
def char() -> CharTokenizer:
    return CharTokenizer().train(TEXT)


@pytest.fixture
def foreign(tmp_path, bpe):
    """Saves a random model of `transformers`, with a tokenizer."""

    def save(name: str, dtype: torch.dtype = torch.float32, engine: Engine | None = None) -> Path:
        torch.manual_seed(2)
        model = odd_models()[name]
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        folder = tmp_path / f"their-{name}"
        model.to(dtype).save_pretrained(folder)
        text = (engine or bpe.to_engine()).to_str()
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<|end|>"}) if "<|end|>" in text else "{}", encoding="utf-8"
        )
        return folder

    return save


@pytest.fixture
def tokens(tokenizer, longer_text) -> np.ndarray:
    return np.array(tokenizer.encode(longer_text[:1200]), np.uint16)


@pytest.fixture
def quiet_terminal(monkeypatch):
    """No variable that makes a pipe look like a terminal; one thread."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A place with a text and two trained runs: `chars` and, newer, `story`."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        Path("story.txt").write_text(words(), encoding="utf-8")
        assert main(["train", "story.txt", "--tokenizer", "char", "--run", "chars", *TINY]) == 0
        assert main(["train", "story.txt", *TINY]) == 0
    return place


@pytest.fixture
def place(trained, tmp_path, monkeypatch, capsys):
    """A copy of the trained place to work in."""
    shutil.copytree(trained, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    capsys.readouterr()
    return Path(".")


@pytest.fixture
def run(capsys):
    """Runs the program in this process."""

    def call(*args):
        code = main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        assert "\x1b" not in err
        return Result(code=code, out=out, err=err, lines=err.splitlines())

    return call
