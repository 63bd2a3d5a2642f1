"""Room: run folder ↔ memory: save, verify, load, fall back. Knows nothing of the loop.

    checkpoints/<run>/
        config.toml  tokenizer.json  metrics.jsonl
        last  best                    the names of two of the folders below
        step-001000/
            model.safetensors  optimizer.safetensors  state.json
            manifest.json             size and SHA-256 of each of these

A checkpoint is written beside its place, synced to disk and renamed: it is whole or not there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from myllm.config import RunConfig, from_toml, to_toml
from myllm.errors import CheckpointError, DiskFullError, InputError
from myllm.model import GPTModel
from myllm.tokenizer import Tokenizer

log = logging.getLogger(__name__)

MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors",
    "optimizer.safetensors",
    "state.json",
    "manifest.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """What one `step-NNNNNN` folder holds.

    Attributes:
        step: optimizer steps done.
        model: the weights by name.
        optimizer: the optimizer's state by name; empty if it was not asked for.
        state: counters of the loop, as JSON.
    """

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


class RunFolder:
    """The folder of one training run: the product of training, and all that other verbs need."""

    def __init__(self, path: str | Path) -> None:
        """
        Args:
            path: an existing run folder.

        Raises:
            InputError: it is none.
        """
        self.path = Path(path)
        if not (self.path / "config.toml").is_file():
            raise InputError(f"{self.path} is not a run folder: it has no config.toml")

    @classmethod
    def create(cls, out: Path, name: str, config: RunConfig, tokenizer: Tokenizer) -> RunFolder:
        """Makes `out/name`, or with a number behind the name if that exists already.

        Raises:
            InputError: the folder cannot be written.
        """
        number = 1
        path = out / name
        while True:
            try:
                path.mkdir(parents=True)
                break
            except FileExistsError:
                number += 1
                path = out / f"{name}-{number}"
            except OSError as error:
                raise InputError(f"cannot write {path}: {error.strerror}") from None
        if number > 1:
            log.warning("run %s exists already; this one is %s", name, path.name)
        with _write_errors(path):
            tokenizer.save(path / "tokenizer.json")
            _write_synced(path / "config.toml", to_toml(config))
        return cls(path)

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return self.path.name

    @property
    def resume_name(self) -> str:
        """What `--resume` takes: the name, or the path of a run that is not in the default
        folder."""
        return self.name if self.path.parent == Path("checkpoints") else str(self.path)

    @property
    def config(self) -> RunConfig:
        """The configuration that the run was started with."""
        return from_toml(self.path / "config.toml")

    def set_config(self, config: RunConfig) -> None:
        """Replaces the configuration, as a whole."""
        path = self.path / "config.toml"
        with _write_errors(path):
            _write_synced(path, to_toml(config))

    @property
    def tokenizer(self) -> Tokenizer:
        """The run's tokenizer."""
        return Tokenizer.load(self.path / "tokenizer.json")

    def steps(self) -> list[int]:
        """The steps of which there is a checkpoint, rising."""
        names = (re.fullmatch(r"step-(\d{6,})", p.name) for p in self.path.iterdir())
        return sorted(int(match[1]) for match in names if match)

    def pointed(self, pointer: str) -> int | None:
        """The step that `last` or `best` names, if its folder is there."""
        try:
            name = (self.path / pointer).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        match = re.fullmatch(r"step-(\d{6,})", name)
        return int(match[1]) if match and (self.path / name).is_dir() else None

    def save(self, checkpoint: Checkpoint, is_best: bool, keep: int) -> None:
        """Saves a checkpoint, points `last` (and `best`) at it and removes old ones.

        Args:
            checkpoint: what to save.
            is_best: whether it is the best so far.
            keep: how many of the newest to keep, besides the best.

        Raises:
            DiskFullError: no room; earlier checkpoints are intact.
            InputError: the folder cannot be written.
        """
        final = self.path / _step_name(checkpoint.step)
        unfinished = self.path / f".tmp-{final.name}-{os.getpid()}"
        groups = (checkpoint.model, checkpoint.optimizer)
        needed = sum(t.numel() * t.element_size() for group in groups for t in group.values())
        needed += 1 << 20  # headers and the small files
        full = DiskFullError(
            f"no room to save step {checkpoint.step} in {self.path}: {needed:,} bytes are needed; "
            f"earlier checkpoints are intact. Make room, then: "
            f"myllm train --resume {self.resume_name}"
        )
        try:
            if shutil.disk_usage(self.path).free < needed:
                raise full
            unfinished.mkdir()
            save_file(_on_cpu(checkpoint.model), unfinished / MODEL)
            save_file(_on_cpu(checkpoint.optimizer), unfinished / OPTIMIZER)
            state = {**checkpoint.state, "step": checkpoint.step}
            (unfinished / STATE).write_text(json.dumps(state, indent=1), encoding="utf-8")
            files = {}
            for path in sorted(unfinished.iterdir()):
                _sync(path)
                files[path.name] = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            _write_synced(unfinished / MANIFEST, json.dumps({"files": files}, indent=1))
            if final.exists():  # only one that is damaged is still to be made (see `load`)
                shutil.rmtree(final)
            os.replace(unfinished, final)
            _sync(self.path)
            for pointer in ("last", "best") if is_best else ("last",):
                _write_synced(self.path / pointer, final.name + "\n")
        except (OSError, SafetensorError) as error:
            if getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error):
                raise full from None
            raise InputError(f"cannot write to {self.path}: {error}") from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        kept = {self.pointed("best"), *self.steps()[-keep:]}
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path / _step_name(step))

    def load(self, prefer: str = "last", with_optimizer: bool = True) -> Checkpoint:
        """The checkpoint that `prefer` names; if it is damaged, the newest good one.

        Args:
            prefer: `last` or `best`.
            with_optimizer: whether the optimizer's state is wanted, too.

        Raises:
            CheckpointError: there is no good checkpoint; the message names the damaged file.
            InputError: there has not been a checkpoint yet.
        """
        steps = self.steps()
        if not steps:
            raise InputError(f"run {self.name} has no checkpoint yet: it ended before its first")
        preferred = self.pointed(prefer)
        if preferred is not None:
            steps = [step for step in steps if step != preferred] + [preferred]
        reasons = []
        for step in reversed(steps):
            try:
                checkpoint = self._read(step, with_optimizer)
            except CheckpointError as error:
                reasons.append(str(error))
                log.warning("%s", error)
                continue
            if reasons:
                log.warning("using the good checkpoint of step %d instead", step)
            return checkpoint
        raise CheckpointError(f"no good checkpoint is left in {self.path}: {reasons[0]}")

    def _read(self, step: int, with_optimizer: bool) -> Checkpoint:
        folder = self.path / _step_name(step)
        names = [MODEL, STATE, *([OPTIMIZER] if with_optimizer else [])]
        verify(folder, names)
        try:
            state = json.loads((folder / STATE).read_text(encoding="utf-8"))
            optimizer = load_file(folder / OPTIMIZER) if with_optimizer else {}
            return Checkpoint(step, load_file(folder / MODEL), optimizer, state)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(f"{folder} is damaged: {error}") from None

    def append_metrics(self, record: dict[str, Any]) -> None:
        """Adds a line to `metrics.jsonl`."""
        path = self.path / "metrics.jsonl"
        with _write_errors(path), path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(record) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The records of `metrics.jsonl`; a line cut short by a crash is left out."""
        try:
            text = (self.path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return []
        records = []
        for line in text.splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and type(record.get("step")) is int:
                records.append(record)
        return records

    def cut_metrics(self, step: int) -> None:
        """Drops the records after `step`: a resumed run will write them again."""
        lines = [json.dumps(record) + "\n" for record in self.metrics() if record["step"] <= step]
        path = self.path / "metrics.jsonl"
        with _write_errors(path):
            _write_synced(path, "".join(lines))


def verify(folder: Path, names: list[str]) -> None:
    """Holds the files of a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing, truncated or altered; the message names it.
    """
    manifest = folder / MANIFEST
    try:
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        expected = {name: (files[name]["bytes"], files[name]["sha256"]) for name in names}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise CheckpointError(f"{manifest} is missing or damaged") from None
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        if path.stat().st_size != size:
            raise CheckpointError(f"{path} is damaged: {path.stat().st_size} bytes, not {size}")
        if _sha256(path) != sha256:
            raise CheckpointError(f"{path} is damaged: its SHA-256 is not the saved one")


def find_run(out: Path, name: str | None = None) -> RunFolder:
    """The run of that name (or path) in `out`; without a name, the one saved to last.

    Raises:
        InputError: there is none; the message says how to make one.
    """
    if name is not None:
        for path in (out / name, Path(name)):
            if (path / "config.toml").is_file():
                return RunFolder(path)
        here = ", ".join(sorted(p.parent.name for p in out.glob("*/config.toml"))[:10])
        raise InputError(f"no run {name!r} in {out}" + (f"; there are: {here}" if here else ""))
    latest: dict[Path, int] = {}
    for path in out.glob("*/step-*/manifest.json"):
        run = path.parent.parent
        latest[run] = max(latest.get(run, 0), path.stat().st_mtime_ns)
    if not latest:
        raise InputError(f"there is no trained model in {out} yet: make one with myllm train FILE")
    return RunFolder(max(latest, key=lambda run: latest[run]))


def load_model(
    run: RunFolder, device: torch.device | str = "cpu", prefer: str = "best"
) -> tuple[GPTModel, Tokenizer, Checkpoint]:
    """The model of a run, ready to use, with its tokenizer and the checkpoint it came from.

    Raises:
        CheckpointError: no good checkpoint, or its weights are not of the configured shape.
        InputError: the run's configuration or tokenizer cannot be read.
    """
    checkpoint = run.load(prefer, with_optimizer=False)
    tokenizer = run.tokenizer
    model = GPTModel(run.config.model)
    load_weights(model, checkpoint)
    saved = checkpoint.state.get("fingerprint", {}).get("tokenizer", tokenizer.content_hash)
    if saved != tokenizer.content_hash:
        raise CheckpointError(
            f"{run.path / 'tokenizer.json'} is not the tokenizer that the model was trained with"
        )
    return model.to(device).eval(), tokenizer, checkpoint


def load_weights(model: GPTModel, checkpoint: Checkpoint) -> None:
    """Copies a checkpoint's weights into `model`.

    Raises:
        CheckpointError: other names or shapes than the model's.
    """
    weights = dict(checkpoint.model)
    if model.config.tie_weights and "token_embedding.weight" in weights:
        weights["lm_head.weight"] = weights["token_embedding.weight"]
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        first = str(error).strip().splitlines()[-1].strip()
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.step} does not fit config.toml: {first}"
        ) from None


def model_tensors(model: GPTModel) -> dict[str, Tensor]:
    """The weights to save: each once, tied ones under the embedding's name."""
    return dict(model.named_parameters())


@contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    """Tells a person that a small file could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(
                f"no room to write {path}: some kilobytes are needed; earlier checkpoints are "
                "intact"
            ) from None
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _step_name(step: int) -> str:
    return f"step-{step:06d}"


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _write_synced(path: Path, text: str) -> None:
    """Replaces a small text file as a whole."""
    unfinished = path.with_name(f".tmp-{path.name}-{os.getpid()}")
    unfinished.write_text(text, encoding="utf-8", newline="\n")
    _sync(unfinished)
    os.replace(unfinished, path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle to sync a folder by
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
