"""What cannot be meant together is refused in one line; nothing that was named is ignored."""

from pathlib import Path

import pytest
from cli_place import TINY, assert_refused, hashes, words

import myllm
from myllm.errors import ConfigError
from myllm.kinds import ATTENTIONS

pytestmark = pytest.mark.usefixtures("quiet_terminal")
FEW = ["--max-steps", "1", "--batch-size", "2", "--kernels", "plain", "--device", "cpu"]


@pytest.mark.parametrize(
    "args, parts",
    [
        ("train --resume story --run other", ["--resume story", "--run other"]),
        ("train --resume story --from chars", ["--from chars", "--resume story"]),
        ("train --resume story --data shakespeare", ["--data shakespeare", "--resume story"]),
        ("train --resume story --minutes 5", ["--minutes 5", "--max-steps"]),
        ("train story.txt --from chars --tokenizer bpe", ["tokenizer char → bpe"]),
        ("train story.txt --from story --tokenizer char", ["tokenizer bpe → char"]),
        ("train story.txt --from story --vocab-size 300", ["vocab_size 313 → 300"]),
        ("train story.txt --from story --vocab-size 9999", ["vocab_size 313 → 9999"]),
        ("train story.txt --from story --preset gpt2", ["preset modern → gpt2"]),
        ("train story.txt --from story --size cpu", ["size None → cpu"]),
        ("train story.txt --from story --d-model 64", ["d_model 32 → 64"]),
        ("train story.txt --from story --position learned", ["position rotary → learned"]),
        ("train story.txt --show-settings --quiet", ["--show-settings", "--quiet"]),
        ("train story.txt --tokenizer char --vocab-size 300", ["--vocab-size 300", "bpe"]),
        ("train story.txt --position learned --rope-theta 500", ["--rope-theta", "rotary"]),
        ("train story.txt --rope-original-context 64", ["--rope-factor"]),
        ("train story.txt --schedule constant --min-learning-rate 0.1", ["--schedule"]),
        ("train story.txt --data shakespeare", ["paths", "shakespeare"]),
        ("prepare story.txt --val-split end", ["--val-split", "myllm train"]),
        ("evaluate --encoding latin-1", ["--encoding"]),
        ("export story --to hf --quantize q8_0", ["--quantize", "gguf"]),
    ],
)
def test_one_line_and_nothing_made(place, run, args, parts):
    """Exit 2, says what contradicts, before anything is written."""
    before = hashes(".")
    assert_refused(run(*args.split()), 2, *parts)
    assert hashes(".") == before


def test_a_prepared_text_is_not_read_in_another_way(place, run):
    """Its tokenizer and encoding are what they are."""
    assert run("prepare", "story.txt", "--out", "made").code == 0
    for flag, value in (("tokenizer", "char"), ("vocab-size", "300"), ("encoding", "latin-1")):
        assert_refused(run("train", "made", f"--{flag}", value, *TINY), 2, f"--{flag} {value}")
    assert_refused(run("prepare", "made", "--out", "again"), 2, "prepared already")
    assert run("train", "made", "--val-split", "end", "--tokenizer", "bpe", *TINY).code == 0


def test_prepare_a_corpus_by_name(place, run, monkeypatch):
    """--data is no flag of train alone."""
    monkeypatch.setattr("myllm.api.download_corpus", lambda name, folder: Path("story.txt"))
    assert run("prepare", "--data", "shakespeare", "--out", "corpus").code == 0
    assert Path("corpus/tokens.npy").is_file()


def test_settings_that_say_the_same_again(place, run):
    """A run's own config.toml names everything, and contradicts nothing."""
    Path("own.toml").write_bytes(Path("checkpoints/story/config.toml").read_bytes())
    assert run("train", "--resume", "story", "--config", "own.toml").code == 0
    assert run("train", "story.txt", "--config", "own.toml", "--max-steps", "1").code == 0


class TestUnknownCharacters:
    def test_of_a_text_to_begin_with(self, place, run):
        """Mostly unknown: refused. Some: told, with the share."""
        Path("foreign.txt").write_text("你好世界 " * 500, encoding="utf-8")
        found = run("train", "foreign.txt", "--from", "chars", *FEW)
        assert_refused(found, 2, "only 20%", "chars", "without --from")
        Path("mixed.txt").write_text(words() + "你好" * 100, encoding="utf-8")
        found = run("train", "mixed.txt", "--from", "chars", *FEW)
        assert found.code == 0 and "200 of this text's characters (0.94%)" in found.err
        assert "unknown" not in run("train", "mixed.txt", "--from", "story", *FEW).err

    def test_of_other_texts(self, place, run):
        """evaluate and generate tell the share."""
        Path("foreign.txt").write_text("你好世界 " * 100, encoding="utf-8")
        found = run("evaluate", "foreign.txt", "--run", "chars")
        assert found.code == 0 and "%)" in found.err
        found = run("generate", "你好 a", "--run", "chars", "--max-new-tokens", "1")
        assert found.code == 0 and "2 of 4 characters of the prompt (50%)" in found.err


class TestTheTextOfARun:
    @pytest.mark.parametrize("args", ["evaluate", "inspect-batch story 3", "train --resume story"])
    def test_that_was_edited(self, place, run, args):
        """What it would be measured on, or shown, is no longer what it learned from."""
        with open("story.txt", "a", encoding="utf-8") as file:
            file.write("one more line\n")
        before = hashes("checkpoints")
        assert_refused(run(*args.split()), 2, "text of story has changed since it was trained")
        assert hashes("checkpoints") == before

    def test_that_has_no_checkpoint_to_say_what_it_was(self, place, run):
        """It begins anew."""
        for step in (3, 6):
            for path in sorted(Path(f"checkpoints/story/step-{step:06d}").iterdir()):
                path.unlink()
            Path(f"checkpoints/story/step-{step:06d}").rmdir()
        assert run("train", "--resume", "story").code == 0

    def test_steps_that_it_does_not_have(self, place, run):
        """Their batches taught nothing."""
        assert run("inspect-batch", "story", "5").code == 0
        for step in ("100", str(10**23), "-1"):
            assert_refused(run("inspect-batch", "story", step), 2, "step", "between 0 and")


def test_the_python_face_checks_the_same(place):
    """Types, too."""
    run = myllm.load("story")
    for setting in ({"temperature": "hot"}, {"max_new_tokens": 2.5}, {"top_k": True}):
        with pytest.raises(ConfigError, match="must be a"):
            run.generate("the", **setting)


def test_a_trained_model_keeps_an_attention_that_computes_the_same(place, run, monkeypatch):
    """Others that compute the same may take its place; one that does not may not."""

    other = type("Other", (ATTENTIONS["flash"],), {"is_standard": False})
    monkeypatch.setitem(ATTENTIONS, "other", other)
    for flags in (["--resume", "story"], ["story.txt", "--from", "story", "--run", "new"]):
        refused = run("train", *flags, "--attention", "other", "--device", "cpu")
        assert_refused(refused, 2, "attention", "other")
