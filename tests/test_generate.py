"""Writing: sampling, streaming (law 8), the window, the interactive mode."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch

from myllm.cli.writer import Writer
from myllm.config import SamplingConfig
from myllm.errors import ConfigError
from myllm.generate.decode import decode_one_token, prefill
from myllm.generate.generator import TextGenerator, TextWindow, window_start
from myllm.generate.sampling import filter_probabilities, next_token
from myllm.model import GPTModel
from myllm.model.cache import KVCache
from myllm.tokenizer import BPETokenizer

TEXT = "Straße 你好 नमस्ते 👩‍👩‍👧 café naïve — the quick brown fox.\n" * 30
LOUD = SamplingConfig(max_new_tokens=60, temperature=2.0, top_p=None, sample_seed=1,
                      ignore_end=True)  # fmt: skip


@pytest.fixture
def writer(model_config) -> TextGenerator:
    """A random model over bytes: most of what it writes are pieces of characters."""
    tokenizer = BPETokenizer(300).train(TEXT)
    torch.manual_seed(1)
    config = dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size)
    return TextGenerator(GPTModel(config), tokenizer)


def test_decoding_side_by_side(writer):
    """Law 8: padded prompts, a text that joins later, and each writes what it writes alone."""
    model = writer.model.eval()
    with torch.no_grad():  # weights large enough that every token counts
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    texts = [[5, 6, 7, 8], [9], [11, 12]]

    def alone(ids, n):
        cache = KVCache(model.config)
        logits = prefill(model, torch.tensor([ids]), cache)
        for _ in range(n):
            ids = [*ids, int(logits.argmax())]
            logits = decode_one_token(model, torch.tensor(ids[-1:]), cache)
        return ids

    expected = [alone(texts[0], 9), alone(texts[1], 9), alone(texts[2], 5)]
    cache, late = KVCache(model.config), KVCache(model.config)
    padded = torch.tensor([texts[0], texts[1] + [0, 0, 0]])
    logits = prefill(model, padded, cache, counts=[4, 1])  # (2, V)
    for step in range(9):
        if step == 4:
            logits = torch.cat((logits, prefill(model, torch.tensor([texts[2]]), late)))
            cache.join(late)
        ids = logits.argmax(-1)  # (B,)
        texts = [[*t, i] for t, i in zip(texts, ids.tolist())] + texts[len(ids) :]
        logits = decode_one_token(model, ids, cache)
    assert texts == expected


class TestSampling:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, -3.0])

    def draws(self, n=300, context=(), **settings):
        sampling = SamplingConfig(**{"top_p": None, "temperature": 1.0, **settings})
        rng = torch.Generator().manual_seed(1)
        return [next_token(self.logits, sampling, rng, context) for _ in range(n)]

    def test_temperature_zero_is_greedy(self):
        assert set(self.draws(temperature=0)) == {0}

    def test_temperature_one_is_the_distribution(self):
        draws = torch.tensor(self.draws(20_000)).bincount(minlength=5) / 20_000
        torch.testing.assert_close(draws, self.logits.softmax(-1), atol=0.01, rtol=0)

    def test_temperature_sharpens(self):
        assert self.draws(temperature=0.3).count(0) > self.draws(temperature=2.0).count(0)

    def test_top_k(self):
        assert set(self.draws(top_k=2)) == {0, 1}
        assert set(self.draws(top_k=99)) == set(self.draws())

    def test_top_p(self):
        """The likeliest tokens up to the one that reaches the probability, and no more."""
        p = self.logits.softmax(-1)  # 0.64 0.24 0.09 0.03 0.00
        kept = filter_probabilities(p, SamplingConfig(top_p=0.7)) > 0
        assert kept.tolist() == [True, True, False, False, False]
        kept = filter_probabilities(p, SamplingConfig(top_p=1e-6)) > 0
        assert kept.tolist() == [True, False, False, False, False]

    def test_min_p(self):
        p = self.logits.softmax(-1)
        kept = filter_probabilities(p, SamplingConfig(top_p=None, min_p=0.3)) > 0
        assert kept.tolist() == [True, True, False, False, False]

    def test_repetition_penalty(self):
        """What stands in the context becomes less likely, whatever the sign of its logit."""
        plain, less = self.draws(3000), self.draws(3000, context=[0, 3], repetition_penalty=3.0)
        assert less.count(0) < plain.count(0) and less.count(3) < plain.count(3)

    def test_same_seed_same_text(self, writer):
        assert writer.generate("the", LOUD) == writer.generate("the", LOUD)
        other = dataclasses.replace(LOUD, sample_seed=2)
        assert writer.generate("the", LOUD) != writer.generate("the", other)

    @pytest.mark.parametrize("bad", [dict(temperature=-1), dict(top_p=0), dict(top_k=0),
                                     dict(min_p=2), dict(repetition_penalty=0), dict(stop=("",)),
                                     dict(max_new_tokens=-1)])  # fmt: skip
    def test_limits(self, writer, bad):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            writer.generate("the", SamplingConfig(**bad))


class TestStreaming:
    @pytest.mark.parametrize("seed", range(8))
    def test_stream_is_the_text(self, writer, seed):
        """Law 8. A last character that is not whole is not shown."""
        sampling = dataclasses.replace(LOUD, sample_seed=seed)
        ids = list(writer.stream_ids(writer.encode_prompt("fox"), sampling))
        pieces = list(writer.stream("fox", sampling))
        shown = writer.tokenizer.decode(ids).rstrip("\ufffd")
        assert "".join(pieces) == writer.generate("fox", sampling) == shown

    def test_never_splits_a_character(self, writer):
        ids = writer.tokenizer.encode(TEXT)
        pieces = list(writer.tokenizer.decode_stream(ids))
        assert "".join(pieces) == TEXT and not any("\ufffd" in piece for piece in pieces)

    def test_stop_strings(self, writer):
        text = writer.generate("fox", LOUD)
        for stop in (text[5:8], text[10], text[3:20], "nowhere in it"):
            sampling = dataclasses.replace(LOUD, stop=(stop, "\x01never"))
            stopped = "".join(writer.stream("fox", sampling))
            assert stopped == text.split(stop)[0]
            assert stopped == writer.generate("fox", sampling)

    def test_end_of_text_ends(self, writer, monkeypatch):
        end = writer.tokenizer.eos_token_id
        with torch.no_grad():  # the head makes the end the likeliest token, always
            writer.model.ln_final.weight.zero_()
            writer.model.ln_final.bias.copy_(writer.model.token_embedding.weight[end] * 1e4)
        greedy = SamplingConfig(max_new_tokens=5, temperature=0)
        assert writer.generate("the", greedy) == ""
        ids = writer.stream_ids([1], dataclasses.replace(greedy, ignore_end=True))
        assert list(ids) == [end] * 5

    def test_unknown_characters_are_announced_once(self, small_model, tokenizer, caplog):
        config = dataclasses.replace(small_model.config, vocab_size=tokenizer.vocab_size)
        writer = TextGenerator(GPTModel(config), tokenizer)
        assert writer.generate("th€ ¥", SamplingConfig(5)) is not None
        assert caplog.text.count("2 of 5 characters of the prompt") == 1

    @pytest.mark.parametrize("prompt", ["", "x", "the quick brown fox " * 20])
    def test_any_prompt_works(self, writer, prompt):
        ids = list(writer.stream_ids(writer.encode_prompt(prompt), LOUD))
        assert len(ids) == 60


class TestWindow:
    def test_cache_equals_no_cache_past_the_context(self, writer):
        """Law 2 beyond the context: the logits are those of the plain model on the window."""
        with torch.no_grad():  # weights large enough that every token in the context counts
            for p in writer.model.parameters():
                p.add_(0.2 * torch.randn_like(p))
        writer.model.eval()
        ids = torch.randint(300, (60,), generator=torch.Generator().manual_seed(1)).tolist()
        window = TextWindow(writer.model)
        for n in range(1, 61):
            read = torch.tensor([ids[:n][window_start(n, 16) :]])
            assert 1 <= read.shape[1] <= 16
            found = window.next_logits(ids[:n])
            torch.testing.assert_close(found, writer.model(read)[0, -1], atol=1e-4, rtol=1e-4)

    def test_start_depends_on_the_length_alone(self):
        for n in range(1, 100):
            start = window_start(n, 16)
            assert start % 8 == 0 and 1 <= n - start <= 16
            assert n <= 16 or n - start > 8

    def test_work_per_token_is_bounded(self, writer, monkeypatch):
        """Past the context not all is computed anew at every token: two tokens on average."""
        read = []
        original = writer.model.features

        def features(tokens, *others):
            read.append(tokens.shape[1])
            return original(tokens, *others)

        monkeypatch.setattr(writer.model, "features", features)
        list(writer.stream_ids([1], dataclasses.replace(LOUD, max_new_tokens=160)))
        assert sum(read) <= 2.2 * 160


class TestWriter:
    @pytest.fixture
    def room(self, writer):
        self.shown: list[str] = []
        return Writer(writer, dataclasses.replace(LOUD, max_new_tokens=5), self.shown.append)

    def say(self, room, line):
        self.shown.clear()
        stays = room.respond(line)
        return "".join(self.shown), stays

    def test_continues_the_text(self, room):
        said, stays = self.say(room, "the fox")
        assert stays and room.text.startswith("the fox")
        assert room.text == "the fox" + said.removesuffix("\n")
        before = room.text
        self.say(room, "")
        assert room.text.startswith(before) and len(room.text) > len(before)

    def test_settings(self, room):
        self.say(room, "/temperature 0.5")
        self.say(room, "/top-k 7")
        self.say(room, "/stop STOP 'two words'")
        assert (room.sampling.temperature, room.sampling.top_k) == (0.5, 7)
        assert room.sampling.stop == ("STOP", "two words")
        self.say(room, "/top-k off")
        assert room.sampling.top_k is None
        assert "temperature: 0.5" in self.say(room, "/settings")[0]

    @pytest.mark.parametrize(
        "line",
        [
            "/temperature hot",
            "/temperature -1",
            "/temperature",
            "/temprature 1",
            "/max-new-tokens off",
            "/stop 'x",
            "/",
        ],
    )
    def test_mistakes_are_told(self, room, line):
        before = room.sampling
        said, stays = self.say(room, line)
        assert stays and said.strip() and room.sampling == before

    def test_help_lists_every_command(self, room):
        said, _ = self.say(room, "/help")
        for name in ("quit", "reset", "probs", "settings", "help", "top-k", "temperature"):
            assert name in said

    @pytest.mark.parametrize("terminal", [True, False])
    def test_what_is_written_cannot_move_the_cursor(self, writer, monkeypatch, capsys, terminal):
        monkeypatch.setattr(writer, "stream", lambda text, sampling: iter(["a\x1b[2J\rb"]))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
        room = Writer(writer, LOUD)
        room.respond("x")
        assert room.text == "xa\x1b[2J\rb"  # the text itself is what the model wrote
        shown = capsys.readouterr().out
        assert shown == ("a␛[2J␍b\n" if terminal else "a\x1b[2J\rb\n")

    def test_probs(self, room):
        said, _ = self.say(room, "/probs")
        shares = [float(line.split("%")[0]) for line in said.splitlines()]
        assert len(shares) == 10 and shares == sorted(shares, reverse=True)

    def test_reset_and_quit(self, room):
        self.say(room, "the fox")
        self.say(room, "/reset")
        assert room.text == ""
        assert self.say(room, "/quit")[1] is False

    @pytest.mark.slow
    @pytest.mark.skipif(sys.platform == "win32", reason="drives a POSIX terminal")
    def test_in_a_terminal(self, tmp_path, writer, monkeypatch):
        """Editing and history work: an edited line, then the line before by the up key."""
        import pexpect

        from myllm.config import RunConfig
        from myllm.runs.checkpoint import Checkpoint
        from myllm.runs.folder import RunFolder
        from myllm.runs.weights import model_tensors

        config = RunConfig(model=writer.model.config)
        run = RunFolder.create(tmp_path, "run", config, writer.tokenizer)
        weights, files = model_tensors(writer.model), run.small_files()
        run.checkpoints.save(Checkpoint(1, weights, {}, {}, {}, files), True, 2)
        child = pexpect.spawn(
            sys.executable,
            ["-m", "myllm", "chat", "--run", str(run.path), "--max-new-tokens", "3"],
            env={"HOME": str(tmp_path), "TERM": "xterm", "PATH": "/usr/bin:/bin"},
            encoding="utf-8",
            timeout=60,
        )
        child.expect(">")  # the prompt; terminal codes follow
        child.send("/temperature 0.9\x7f7\r")  # backspace, then 7
        child.expect("temperature: 0.7")
        child.send("\x1b[A\x7f3\r")  # up, backspace, 3
        child.expect("temperature: 0.3")
        child.send("/quit\r")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0
