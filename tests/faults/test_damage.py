"""Bits flip, files are cut, missing or foreign: all of it is found, and told by `verify`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from myllm.cli import main
from myllm.config import DataConfig
from myllm.data.prepare import prepare
from myllm.data.token_file import open_token_file
from myllm.errors import InputError
from myllm.runs.folder import RunFolder

TINY = (
    "--d-model 16 --n-layers 1 --n-heads 2 --context-length 16 --vocab-size 300 --batch-size 2 "
    "--dtype float32 --device cpu --max-steps 6 --eval-interval 3 --quiet --run r"
).split()


@pytest.fixture
def trained(here) -> RunFolder:
    assert main(["train", "text.txt", *TINY]) == 0
    return RunFolder("checkpoints/r")


def test_every_flip_is_found(trained):
    from damage import flips, missing_and_foreign, truncations

    folder = trained.checkpoints.folder(6)
    assert all(flips(folder, 700))
    assert all(truncations(folder, 20))
    assert all(missing_and_foreign(folder))


def test_every_flip_of_a_token_file_is_found(trained):
    from damage import flips, truncations

    folder = next(Path("data").glob("text-*"))
    assert all(flips(folder, 300, manifest="tokens.json"))
    assert all(truncations(folder, 20, manifest="tokens.json"))


class TestVerify:
    def test_whole(self, trained, capsys):
        assert main(["verify", "r"]) == 0
        table = capsys.readouterr().out
        assert "step-000003" in table and "step-000006" in table and "whole" in table

    @pytest.mark.parametrize(
        "name",
        ["step-000006/optimizer.safetensors", "config.toml", "tokenizer.json", "metrics.jsonl"],
    )
    def test_damage(self, trained, capsys, name):
        path = trained.path / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        assert main(["verify", "r"]) == 3
        out, err = capsys.readouterr()
        assert name.split("/")[0] in out and "damage" in err and "--resume r" in err
        assert "Traceback" not in err

    def test_best_names_another_step(self, trained, capsys):
        (trained.path / "last").write_text("step-000003\n", encoding="utf-8")
        assert main(["verify", "r"]) == 3
        assert "names 'step-000003', not step-000006" in " ".join(capsys.readouterr().out.split())


class TestLostSmallFiles:
    """A checkpoint alone is enough to use a run and to go on with it."""

    @pytest.mark.parametrize("name", ["config.toml", "tokenizer.json", "metrics.jsonl", "best"])
    @pytest.mark.parametrize("damage", ["lost", "broken"])
    def test_a_run_without(self, trained, capsys, name, damage):
        if damage == "lost":
            (trained.path / name).unlink()
        else:
            (trained.path / name).write_bytes(b"\xff\x00[")
        assert main(["generate", "the", "--run", "r", "--max-new-tokens", "3"]) == 0
        assert main(["train", "--resume", "r", "--max-steps", "9", "--quiet"]) == 0
        capsys.readouterr()
        assert main(["verify", "r"]) == 0, capsys.readouterr().out
        assert [record["step"] for record in RunFolder(trained.path).metrics()] == [3, 6, 9]


class TestTokenFiles:
    @pytest.fixture
    def folder(self, tmp_path, longer_text) -> Path:
        (tmp_path / "text.txt").write_text(longer_text, encoding="utf-8")
        prepare(DataConfig((str(tmp_path / "text.txt"),)), 300, out=tmp_path / "made")
        return tmp_path / "made"

    @pytest.mark.parametrize("damage", ["shorter", "odd", "dtype", "beyond", "no header"])
    def test_damage_is_found(self, folder, damage):
        path = folder / "tokens.npy"
        tokens = np.load(path)
        if damage == "shorter":
            path.write_bytes(path.read_bytes()[:-2])
        elif damage == "odd":
            path.write_bytes(path.read_bytes()[:-1])
        elif damage == "dtype":
            np.save(path, tokens.astype(np.float32))
        elif damage == "beyond":
            tokens[3] = 60_000
            np.save(path, tokens)
        else:
            path.write_bytes(b"tokens")
        with pytest.raises(InputError, match=r"tokens.npy.*prepare it again"):
            open_token_file(folder)

    def test_ids_beyond_the_vocabulary_with_a_true_hash(self, folder):
        """What somebody else made is not believed either."""
        from myllm.system.atomic import read_manifest, sealed_folder

        facts = read_manifest(folder, "tokens.json")
        tokens = np.load(folder / "tokens.npy")
        tokens[3] = 60_000
        with sealed_folder(folder.with_name("forged"), "tokens.json", facts) as forged:
            np.save(forged / "tokens.npy", tokens)
            shutil.copy(folder / "tokenizer.json", forged)
        with pytest.raises(InputError, match="beyond its vocabulary"):
            open_token_file(folder.with_name("forged"))

    def test_ours_is_made_again(self, trained, caplog):
        folder = next(Path("data").glob("text-*"))
        content = bytearray((folder / "tokens.npy").read_bytes())
        content[random.Random(1).randrange(200, len(content))] ^= 1
        (folder / "tokens.npy").write_bytes(content)
        assert main(["train", "--resume", "r", "--max-steps", "7", "--quiet"]) == 0
        assert "it is made again" in caplog.text


def test_inspect_batch_shows_what_a_step_learned_from(trained, capsys, longer_text):
    assert main(["inspect-batch", "r", "4"]) == 0
    out = capsys.readouterr().out
    assert out.count("--- sequence") == 2
    for line in out.splitlines():
        assert line.startswith("---") or line in longer_text
    assert main(["inspect-batch", "r", "-1"]) == 2
