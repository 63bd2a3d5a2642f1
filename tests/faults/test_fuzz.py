"""Files that somebody else, or chance, has written: one line of error, soon, and no more memory.

Each target gets what it would read; what may come out is a result or an error of `errors.py`.
The quick form tries some hundred inputs per target, the long one 100,000 in all, and
1,000 per file of a folder to import.
"""

from __future__ import annotations

import json
import shutil
import struct
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from myllm.config import DataConfig, GPTConfig, RunConfig, from_toml, to_toml
from myllm.data.prepare import encode_text, prepare
from myllm.data.token_file import open_token_file
from myllm.errors import MyLLMError
from myllm.formats.hf_export import export_huggingface
from myllm.formats.hf_import import import_huggingface
from myllm.model import GPTModel
from myllm.presets import default_config
from myllm.runs.checkpoint import MANIFEST, MODEL, Checkpoint
from myllm.runs.folder import RunFolder
from myllm.runs.weights import load_model, model_tensors
from myllm.system.atomic import sealed_folder
from myllm.tokenizer import BPETokenizer, CharTokenizer, Tokenizer
from myllm.train.state import TrainState

LONG = 100_000
SHAPE = GPTConfig(vocab_size=40, context_length=8, d_model=8, n_layers=1, n_heads=2)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@st.composite
def mutated(draw, original: bytes) -> bytes:
    """`original` with some bytes changed, cut out, doubled or replaced by nonsense."""
    data = bytearray(original)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(("flip", "cut", "insert", "number", "double")))
        if kind == "flip" and data:
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 64))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=16))
        elif kind == "number":
            digits = draw(st.sampled_from((b"-1", b"0", b"9" * 20, b"1e999", b"NaN", b"2.5")))
            data[at : at + 1] = digits
        else:
            data[at:at] = data[at : at + draw(st.integers(1, 64))]
    return bytes(data)


@st.composite
def mutated_json(draw, original: dict) -> bytes:
    """`original` with one value, somewhere, replaced by any other; or taken away."""
    copy = json.loads(json.dumps(original))
    at = copy
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(min(len(at), 50)))
        key = draw(st.sampled_from(keys))
        if isinstance(at[key], (dict, list)) and at[key] and draw(st.booleans()):
            at = at[key]
            continue
        if draw(st.integers(0, 3)):
            at[key] = draw(json_values)
        else:
            del at[key]
        return json.dumps(copy).encode("utf-8", "surrogatepass")


class Targets:
    """What reads the inputs, made once: a folder of good files to change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = "the king rides to the old city and sings of the river\n" * 40
        (folder / "text.txt").write_text(text, encoding="utf-8")
        torch.manual_seed(1)
        model = GPTModel(SHAPE)
        tokenizer = CharTokenizer().train(text + "0123456789")
        self.run = RunFolder.create(folder, "run", RunConfig(model=SHAPE), tokenizer)
        self.run.append_metrics({"step": 1, "val_loss": 2.0})
        checkpoint = Checkpoint(1, model_tensors(model), {}, {}, {}, self.run.small_files())
        self.run.checkpoints.save(checkpoint, True, 2)
        self.files = {p.name: p.read_bytes() for p in self.run.checkpoints.folder(1).iterdir()}
        prepare(DataConfig((str(folder / "text.txt"),), tokenizer="char"), 0, out=folder / "made")
        self.made = {p.name: p.read_bytes() for p in (folder / "made").iterdir()}
        self.char = tokenizer.to_dict()
        self.bpe = BPETokenizer(280).train(text).to_dict()
        layout = default_config("modern").model
        shape = replace(layout, vocab_size=280, context_length=8, d_model=8, n_layers=1, n_heads=2)
        theirs = RunFolder.create(
            folder, "theirs", RunConfig(model=shape), BPETokenizer.from_dict(self.bpe)
        )
        weights = model_tensors(GPTModel(shape))
        state = {"progress": TrainState().to_json()}
        theirs.checkpoints.save(
            Checkpoint(1, weights, {}, state, {}, theirs.small_files()), True, 2
        )
        export_huggingface(theirs, folder / "hf")
        self.foreign = {p.name: p.read_bytes() for p in (folder / "hf").iterdir()}
        self.import_config(self.foreign["config.json"])  # PyTorch loads more of itself for it
        self.n = 0

    def new(self) -> Path:
        self.n += 1
        return self.folder / f"input-{self.n % 2}"

    def tokenizer(self, data: bytes) -> None:
        path = self.new()
        path.write_bytes(data)
        loaded = Tokenizer.load(path)
        loaded.decode(loaded.encode("the king, 你好"))

    def config(self, data: bytes) -> None:
        path = self.new()
        path.write_bytes(data)
        from_toml(path)

    def metrics(self, data: bytes) -> None:
        (self.run.path / "metrics.jsonl").write_bytes(data)
        for record in self.run.metrics():
            assert type(record["step"]) is int

    def text(self, data: bytes) -> None:
        path = self.new()
        path.write_bytes(data)
        tokenizer = BPETokenizer.from_dict(self.bpe)
        assert isinstance(tokenizer, BPETokenizer)
        encode_text(str(path), tokenizer, DataConfig(data_dir=str(self.folder)))

    def checkpoint(self, data: bytes) -> None:
        """With a true manifest, so that it is not the hash that finds it."""
        self._forged({**self.files, MODEL: data})

    def checkpoint_config(self, data: bytes) -> None:
        self._forged({**self.files, "config.toml": data})

    def manifest(self, data: bytes) -> None:
        (self.run.checkpoints.folder(1) / MANIFEST).write_bytes(data)
        RunFolder(self.run.path).checkpoints.load()

    def sealed(self, data: bytes) -> None:
        """With the hash that is right for what it says."""
        told = json.loads(data)
        self._forged(self.files, told if isinstance(told, dict) else {})
        checkpoints = RunFolder(self.run.path).checkpoints
        assert type(checkpoints.best_step()) in (int, type(None))
        checkpoints.load()

    def token_file(self, data: bytes) -> None:
        self._open_forged({**self.made, "tokens.npy": data}, {})

    def sidecar(self, data: bytes) -> None:
        facts = json.loads(data)
        if isinstance(facts, dict):
            self._open_forged(self.made, facts)

    def import_config(self, data: bytes) -> None:
        self._import("config.json", data)

    def import_weights(self, data: bytes) -> None:
        self._import("model.safetensors", data)

    def import_tokenizer(self, data: bytes) -> None:
        self._import("tokenizer.json", data)

    def import_settings(self, data: bytes) -> None:
        self._import("tokenizer_config.json", data)

    def _import(self, name: str, data: bytes) -> None:
        """With one file of a Hugging Face folder changed; what comes in has to work."""
        folder, runs = self.folder / "hf", self.folder / "imported"
        shutil.rmtree(runs, ignore_errors=True)
        for other, content in self.foreign.items():
            (folder / other).write_bytes(data if other == name else content)
        run = import_huggingface(folder, runs, "in")
        if run.config.model.context_length > 4096:
            return  # its table of angles takes the memory that a long context takes
        model, tokenizer, _ = load_model(run)
        ids = tokenizer.encode("the king")[:1]
        tokenizer.decode(ids)
        with torch.inference_mode():
            model(torch.tensor([ids or [0]]))

    def _forged(self, files: dict[str, bytes], told: dict | None = None) -> None:
        path = self.run.checkpoints.folder(1)
        for old in path.iterdir():
            old.unlink()
        path.rmdir()
        told = {"step": 1, "best_step": 1} if told is None else told
        told.pop("sha256", None)
        with sealed_folder(path, MANIFEST, told) as unfinished:
            for name, content in files.items():
                if name != MANIFEST:
                    (unfinished / name).write_bytes(content)
        load_model(RunFolder(self.run.path))

    def _open_forged(self, files: dict[str, bytes], facts: dict) -> None:
        folder = self.folder / "forged"
        if folder.exists():
            for old in folder.iterdir():
                old.unlink()
        good = json.loads(self.made["tokens.json"])
        with sealed_folder(folder, "tokens.json", facts or good) as unfinished:
            for name, content in files.items():
                if name != "tokens.json":
                    (unfinished / name).write_bytes(content)
        open_token_file(folder)


def header(shape: object) -> bytes:
    text = json.dumps(shape).encode()
    return struct.pack("<Q", len(text)) + text


def inputs(targets: Targets) -> dict[str, st.SearchStrategy[bytes]]:
    """What each target is given."""
    model = targets.files[MODEL]
    (size,) = struct.unpack("<Q", model[:8])
    described = json.loads(model[8 : 8 + size])
    toml = to_toml(RunConfig(model=SHAPE)).encode()
    return {
        "tokenizer": mutated_json(targets.char)
        | mutated_json(targets.bpe)
        | mutated(json.dumps(targets.char).encode()),
        "config": mutated(toml) | st.binary(max_size=64),
        "metrics": mutated(b'{"step": 1, "val_loss": 2.5}\n' * 3) | st.binary(max_size=64),
        "text": st.binary(max_size=256) | st.text(max_size=128).map(lambda t: t.encode("utf-16")),
        "checkpoint": mutated_json(described).map(
            lambda text: struct.pack("<Q", len(text)) + text + model[8 + size :]
        )
        | mutated(model)
        | json_values.map(header),
        "checkpoint_config": mutated(toml),
        "manifest": mutated(targets.files[MANIFEST])
        | mutated_json(json.loads(targets.files[MANIFEST])),
        "token_file": mutated(targets.made["tokens.npy"]) | st.binary(max_size=256),
        "sidecar": mutated_json(json.loads(targets.made["tokens.json"])),
        "import_config": mutated_json(json.loads(targets.foreign["config.json"]))
        | mutated(targets.foreign["config.json"]),
        "import_weights": mutated(targets.foreign["model.safetensors"]),
        "import_tokenizer": mutated_json(json.loads(targets.foreign["tokenizer.json"]))
        | mutated(targets.foreign["tokenizer.json"]),
        "import_settings": mutated_json(json.loads(targets.foreign["tokenizer_config.json"])),
    }


NAMES = (
    "tokenizer", "config", "metrics", "text", "checkpoint", "checkpoint_config", "manifest",
    "token_file", "sidecar",
)  # fmt: skip
IMPORTS = ("import_config", "import_weights", "import_tokenizer", "import_settings")


@pytest.fixture
def targets(tmp_path) -> Targets:
    return Targets(tmp_path)


def fuzz(targets: Targets, name: str, n_inputs: int) -> None:
    target: Callable[[bytes], None] = getattr(targets, name)
    restored = {p: p.read_bytes() for p in targets.run.path.rglob("*") if p.is_file()}

    @settings(
        max_examples=n_inputs,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(inputs(targets)[name])
    def each(data: bytes) -> None:
        began, before = time.thread_time(), peak_bytes()
        try:
            target(data)
        except MyLLMError as error:
            assert str(error)
        assert time.thread_time() - began < 10  # of work, not of waiting
        assert peak_bytes() - before < 2 * len(data) + (50 << 20)

    each()
    for path, content in restored.items():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)


def peak_bytes() -> int:
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES + IMPORTS)
def test_bad_input_is_one_line(targets, name, caplog):
    caplog.set_level("CRITICAL", "myllm")
    fuzz(targets, name, 50 if name in IMPORTS else 150)


NONSENSE: tuple[object, ...] = (
    float("inf"), float("-inf"), float("nan"), 10**400, -1, 0, 0.5, True, None, "x", "", [], {},
    [[]],
)  # fmt: skip


def nonsense(original: object) -> Iterator[bytes]:
    """`original` with each of its values (of a list the first and last) replaced by each of
    `NONSENSE`, and taken away."""
    whole = json.loads(json.dumps(original))

    def places(at: object) -> Iterator[tuple]:
        if isinstance(at, (dict, list)):
            keys = list(at) if isinstance(at, dict) else range(len(at))
            keys = keys if len(keys) <= 40 else [keys[0], keys[-1]]
            for key in keys:
                yield at, key
                yield from places(at[key])

    for holder, key in list(places(whole)):
        kept = list(holder.items()) if isinstance(holder, dict) else list(holder)
        for value in NONSENSE:
            holder[key] = value
            yield json.dumps(whole).encode()
        del holder[key]
        yield json.dumps(whole).encode()
        holder.clear()
        holder.update(kept) if isinstance(holder, dict) else holder.extend(kept)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name, file",
    [
        ("tokenizer", "char"),
        ("tokenizer", "bpe"),
        ("manifest", MANIFEST),
        pytest.param("sealed", MANIFEST, marks=pytest.mark.slow),
        ("sidecar", "tokens.json"),
        pytest.param("import_config", "config.json", marks=pytest.mark.slow),
        pytest.param("import_tokenizer", "tokenizer.json", marks=pytest.mark.slow),
        pytest.param("import_settings", "tokenizer_config.json", marks=pytest.mark.slow),
    ],
)
def test_every_value_may_be_nonsense(targets, name, file, caplog):
    caplog.set_level("CRITICAL", "myllm")
    if name == "tokenizer":
        original = getattr(targets, file)
    else:
        group = targets.foreign if name.startswith("import_") else targets.files
        original = json.loads((targets.made if name == "sidecar" else group)[file])
    for data in nonsense(original):
        try:
            getattr(targets, name)(data)
        except MyLLMError as error:
            assert str(error) and "\n" not in str(error)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES + IMPORTS)
def test_bad_input_is_one_line_100_000_times(targets, name, caplog):
    caplog.set_level("CRITICAL", "myllm")
    fuzz(targets, name, 1_000 if name in IMPORTS else -(-LONG // len(NAMES)))
