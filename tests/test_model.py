"""The model: shapes, variants, the laws of causality and of the cache, other programs' layouts."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch

from myllm.config import GPTConfig
from myllm.errors import ConfigError, InputError
from myllm.model import (
    ATTENTIONS,
    FlashAttention,
    GPTModel,
    MultiHeadAttention,
    Role,
    parameter_roles,
)
from myllm.model.cache import KVCache
from myllm.model.dropout import Dropout
from myllm.presets import default_config

VARIANTS = [
    dict(position=position, norm=norm, feed_forward=ff, n_kv_heads=kv, qk_norm=qk, bias=bias)
    for (position, norm, ff), (kv, qk, bias) in itertools.product(
        [
            ("learned", "layernorm", "gelu"),
            ("rotary", "rmsnorm", "swiglu"),
            ("learned", "rmsnorm", "swiglu"),
            ("rotary", "layernorm", "gelu"),
        ],
        [(None, False, True), (2, True, False), (1, True, True)],
    )
]
SHAPE = GPTConfig(vocab_size=61, context_length=16, d_model=32, n_layers=2, n_heads=4, dropout=0.0)


@pytest.fixture(
    params=[(variant, name) for variant in VARIANTS for name in ATTENTIONS],
    ids=lambda p: "-".join(map(str, [*p[0].values(), p[1]])),
)
def variant(request, monkeypatch) -> GPTModel:
    """A model of each variant, with weights large enough that mistakes show."""
    changes, attention = request.param
    monkeypatch.setattr("myllm.model.gpt.QUERY_BLOCK", 5)  # the short texts here have joints, too
    torch.manual_seed(1)
    model = GPTModel(dataclasses.replace(SHAPE, attention=attention, **changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def random_tokens(B: int = 2, T: int = 16) -> torch.Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(2))


def text_of(n: int, seed: int = 2) -> list[int]:
    return torch.randint(61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


def feed(model: GPTModel, cache: KVCache, new: list[list[int]], before=None) -> list[list[int]]:
    """Feeds each row its new tokens, padded, and asserts the logits of each text alone."""
    counts = [len(ids) for ids in new]
    tokens = torch.tensor([ids + [60] * (max(counts) - len(ids)) for ids in new])
    logits = model(tokens.long(), cache, counts) if max(counts) else tokens
    for row, ids, old in zip(logits, new, before or [[]] * len(new)):
        if ids:
            alone = model(torch.tensor([old + ids]))[0, len(old) :]
            torch.testing.assert_close(row[: len(ids)], alone, atol=1e-5, rtol=1e-5)
    return new


class TestGPTModel:
    def test_output_shape(self, small_model, model_config):
        assert small_model(random_tokens(3, 7)).shape == (3, 7, model_config.vocab_size)

    def test_default_is_gpt2_small(self):
        with torch.device("meta"):
            model = GPTModel(GPTConfig())
        assert model.count_parameters() == 124_439_808

    def test_names_are_the_contract(self, small_model):
        names = set(small_model.state_dict())
        block = [f"blocks.0.{n}" for n in ("ln1", "attention.W_q", "attention.W_o", "ln2")]
        block += ["blocks.0.feed_forward.linear1", "blocks.0.feed_forward.linear2"]
        wanted = ["token_embedding", "position_embedding", *block, "ln_final", "lm_head"]
        assert {f"{name}.weight" for name in wanted} <= names

    def test_causality(self, variant):
        """Law 1: a later token never changes an earlier logit."""
        tokens = random_tokens()
        before = variant(tokens)
        for t in (1, 7, 15):
            changed = tokens.clone()
            changed[:, t:] = (changed[:, t:] + 1) % 61
            after = variant(changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.allclose(after[:, t], before[:, t])

    def test_cache_equals_no_cache(self, variant):
        """Law 2: logits with the cache are those without, however the tokens are fed."""
        tokens = random_tokens()
        cache = KVCache(variant.config)
        pieces = [variant(part, cache) for part in tokens.split([5, 1, 1, 4, 1, 4], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), variant(tokens), atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("step", [1, 3])
    def test_rows_of_different_lengths(self, variant, step):
        """Law 2: texts side by side get the logits of each alone, padded at first and after."""
        texts = [text_of(n) for n in (9, 1, 6)]
        cache = KVCache(variant.config)
        fed = feed(variant, cache, [text[:n] for text, n in zip(texts, (5, 1, 3))])
        assert cache.lengths == [5, 1, 3]
        while any(fed):
            pieces = [text[n : n + step] for text, n in zip(texts, cache.lengths)]
            fed = feed(variant, cache, pieces, [text[:n] for text, n in zip(texts, cache.lengths)])
        assert cache.lengths == [9, 1, 6]

    def test_rows_join_leave_and_are_trimmed(self, variant):
        """Law 2: whoever joins, leaves or starts over from an earlier token, midway."""
        a, b, c = text_of(16), text_of(14, seed=3), text_of(12, seed=4)
        cache, other = KVCache(variant.config), KVCache(variant.config)
        feed(variant, cache, [a[:4]])
        feed(variant, other, [b[:7], c[:2]])
        cache.join(other)
        assert cache.lengths == [4, 7, 2] and other.lengths == [7, 2]
        feed(variant, cache, [a[4:6], b[7:8], c[2:6]], [a[:4], b[:7], c[:2]])
        cache.keep([2, 0])
        feed(variant, cache, [c[6:7], a[6:7]], [c[:6], a[:6]])
        cache.trim([3, 7])
        feed(variant, cache, [b[3:9], a[7:16]], [c[:3], a[:7]])
        cache.keep([1])
        assert cache.lengths == [16]
        feed(variant, other, [b[7:8], c[2:3]], [b[:7], c[:2]])  # it is a cache of its own
        cache.keep([])
        feed(variant, cache, [b, c])  # and an empty one takes any number of rows

    def test_one_row_becomes_two(self, variant):
        text, cache = text_of(9), KVCache(variant.config)
        feed(variant, cache, [text[:6]])
        cache.keep([0, 0])
        feed(variant, cache, [text[6:9], text[:1]], [text[:6], text[:6]])

    def test_equal_rows_need_no_mask(self, small_model):
        """What a single text costs does not depend on what the cache can do besides."""
        cache = KVCache(small_model.config)
        small_model(random_tokens(2, 3), cache)
        assert cache.start(2, 4, None) == slice(3, 7)
        k = torch.zeros(2, 4, 4, 8)
        assert cache.update(0, k, k)[2] is None

    def test_standard_ones_agree(self, variant):
        """Flash with manual; a variant that says that it computes something else need not."""
        if not ATTENTIONS[variant.config.attention].is_standard:
            return
        other = "manual" if variant.config.attention != "manual" else "flash"
        twin = GPTModel(dataclasses.replace(variant.config, attention=other)).eval()
        twin.load_state_dict(variant.state_dict())
        tokens = random_tokens()
        torch.testing.assert_close(twin(tokens), variant(tokens), atol=1e-5, rtol=1e-4)
        kind = FlashAttention if other == "flash" else MultiHeadAttention
        assert type(twin.blocks[0].attention) is kind

    def test_dropout_keeps_the_mean_and_follows_the_seed(self):
        dropout, x = Dropout(0.2), torch.ones(1000, 101)
        torch.manual_seed(3)
        first = dropout(x)
        torch.manual_seed(3)
        assert torch.equal(dropout(x), first)
        assert not torch.equal(dropout(x), first)
        assert (first == 0).float().mean().item() == pytest.approx(0.2, abs=0.005)
        assert first.mean().item() == pytest.approx(1, abs=0.01)
        assert torch.equal(dropout.eval()(x), x)

    @pytest.mark.parametrize("rate", [1 / 256, 0.1, 255 / 256])
    def test_dropout_drops_the_rate_at_its_limits_too(self, model_config, rate):
        config = dataclasses.replace(model_config, dropout=rate).validate()
        assert config.dropout_rate == pytest.approx(rate, abs=1 / 512)
        torch.manual_seed(3)
        found = Dropout(config.dropout_rate)(torch.ones(1_000_000))
        assert (found == 0).float().mean().item() == pytest.approx(config.dropout_rate, abs=1e-3)
        assert found.max().item() == pytest.approx(1 / (1 - config.dropout_rate))

    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_recomputed_blocks_give_the_same_gradients(self, model_config, dropout):
        model = GPTModel(dataclasses.replace(model_config, dropout=dropout))
        found = []
        for model.activation_checkpointing in (False, True):
            model.zero_grad()
            torch.manual_seed(4)
            model(random_tokens()).square().mean().backward()
            found.append([p.grad for p in model.parameters()])
        for eager, recomputed in zip(*found):
            assert torch.equal(eager, recomputed)

    def test_every_weight_is_initialised(self, variant):
        with torch.no_grad():
            for tensor in [*variant.parameters(), *variant.buffers()]:
                tensor.fill_(float("nan"))
        variant.reset_parameters()
        for name, tensor in [*variant.named_parameters(), *variant.named_buffers()]:
            assert tensor.isfinite().all(), name
        assert variant(random_tokens()).isfinite().all()

    def test_tied_head_is_one_weight(self, model_config):
        tied = GPTModel(model_config)
        untied = GPTModel(dataclasses.replace(model_config, tie_weights=False))
        assert tied.lm_head.weight is tied.token_embedding.weight
        extra = model_config.vocab_size * model_config.d_model
        assert untied.count_parameters() == tied.count_parameters() + extra

    def test_too_many_tokens(self, small_model):
        with pytest.raises(InputError, match="17 tokens exceed the context length 16"):
            small_model(random_tokens(1, 17))
        cache = KVCache(small_model.config)
        small_model(random_tokens(2, 16), cache, [16, 9])
        with pytest.raises(InputError, match="17 tokens .*16: pass the last"):
            small_model(random_tokens(2, 1), cache)
        small_model(random_tokens(2, 1), cache, [0, 1])
        assert cache.lengths == [16, 10]

    def test_dropout_acts_in_training_only(self, model_config):
        model = GPTModel(dataclasses.replace(model_config, dropout=0.5))
        tokens = random_tokens()
        assert not torch.equal(model(tokens), model(tokens))
        model.eval()
        assert torch.equal(model(tokens), model(tokens))

    def test_initial_loss_is_that_of_a_guess(self, small_model):
        tokens = random_tokens(8, 16)
        logits, others = small_model(tokens).flatten(0, 1), (tokens.ravel() + 7) % 61
        loss = torch.nn.functional.cross_entropy(logits, others)
        assert loss.item() == pytest.approx(torch.tensor(61.0).log().item(), abs=0.1)

    def test_flops_match_a_count(self, small_model):
        """The estimate is within a fifth of what PyTorch counts for a forward and backward."""
        from torch.utils.flop_counter import FlopCounterMode

        model = GPTModel(dataclasses.replace(small_model.config, attention="manual"))
        with FlopCounterMode(display=False) as counter:
            model(random_tokens(4, 16)).sum().backward()
        estimate = model.estimate_flops_per_token(16) * 4 * 16
        assert estimate == pytest.approx(counter.get_total_flops(), rel=0.2)

    @pytest.mark.parametrize(
        "changes, words",
        [
            (dict(d_model=30), "30 is not divisible by n_heads 4"),
            (dict(n_kv_heads=3), "n_kv_heads 3"),
            (dict(d_model=20, position="rotary"), "odd"),
            (dict(vocab_size=0), "vocabulary"),
            (dict(norm="batchnorm"), "choices: .*layernorm.*rmsnorm"),
            (dict(dropout=1.0), "dropout 1.0"),
            (dict(dropout=0.999), "0.999: must be 0, or between 1/256 .* and 255/256"),
            (dict(dropout=0.001), "0.001: must be 0, or between"),
            (dict(n_layers=-1), "n_layers -1"),
        ],
    )
    def test_bad_shapes(self, model_config, changes, words):
        with pytest.raises(ConfigError, match=words):
            GPTModel(dataclasses.replace(model_config, **changes))

    @pytest.mark.gpu
    def test_cuda_agrees_with_cpu(self, variant):
        tokens = random_tokens()
        expected = variant(tokens)
        found = variant.cuda()(tokens.cuda()).cpu()
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)

    def test_compiled_keeps_the_names(self, small_model):
        names = list(small_model.state_dict())
        small_model.compile()
        assert list(small_model.state_dict()) == names


class TestRoles:
    def roles(self, model) -> dict[str, Role]:
        found = parameter_roles(model)
        assert list(found) == [name for name, _ in model.named_parameters()]
        return found

    @pytest.mark.parametrize("tied", [True, False])
    def test_of_the_model(self, model_config, tied):
        found = self.roles(GPTModel(dataclasses.replace(model_config, tie_weights=tied)))
        assert found["token_embedding.weight"] == Role.EMBEDDING
        assert found["position_embedding.weight"] == Role.EMBEDDING
        assert found.get("lm_head.weight") == (None if tied else Role.HEAD)
        assert found["blocks.1.attention.W_q.weight"] == Role.HIDDEN
        assert found["blocks.1.feed_forward.linear2.weight"] == Role.HIDDEN
        assert found["blocks.1.attention.W_q.bias"] == Role.VECTOR
        assert found["blocks.0.ln1.weight"] == found["ln_final.bias"] == Role.VECTOR

    def test_names_mean_nothing(self):
        """A layout of someone else: hidden matrices and vectors, but for what is said."""
        model: Any = torch.nn.Module()
        model.lm_head = torch.nn.Linear(3, 3)  # a misleading name
        model.adapter = type("Adapter", (torch.nn.Linear,), {"role": Role.ADAPTER})(3, 3)
        dict(model.named_parameters())["adapter.weight"].requires_grad = False  # its role stays
        assert list(self.roles(model).values()) == [
            Role.HIDDEN, Role.VECTOR, Role.ADAPTER, Role.ADAPTER
        ]  # fmt: skip


def _shape(preset: str, **changes) -> GPTConfig:
    sizes = dict(vocab_size=61, context_length=16, d_model=32, n_layers=2, n_heads=4, dropout=0.0)
    return dataclasses.replace(default_config(preset).model, **{**sizes, **changes})


def _randomized(model: GPTModel) -> GPTModel:
    torch.manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return model.eval()


class TestForeignLayouts:
    """The presets compute what `transformers` computes with the same weights."""

    def test_gpt2(self):
        from transformers import GPT2Config, GPT2LMHeadModel

        config = _shape("gpt2")
        ours = _randomized(GPTModel(config))
        theirs = GPT2LMHeadModel(
            GPT2Config(vocab_size=61, n_positions=16, n_embd=32, n_layer=2, n_head=4)
        ).eval()
        w = ours.state_dict()
        table = {
            "transformer.wte.weight": w["token_embedding.weight"],
            "transformer.wpe.weight": w["position_embedding.weight"],
            "lm_head.weight": w["token_embedding.weight"],
        }
        for kind in ("weight", "bias"):
            table[f"transformer.ln_f.{kind}"] = w[f"ln_final.{kind}"]
            for i in range(2):
                a, b = f"transformer.h.{i}.", f"blocks.{i}."
                qkv = torch.cat([w[f"{b}attention.W_{n}.{kind}"] for n in "qkv"])
                there = {
                    "ln_1": w[f"{b}ln1.{kind}"],
                    "ln_2": w[f"{b}ln2.{kind}"],
                    "attn.c_attn": qkv.T,  # their linear layers are stored transposed
                    "attn.c_proj": w[f"{b}attention.W_o.{kind}"].T,
                    "mlp.c_fc": w[f"{b}feed_forward.linear1.{kind}"].T,
                    "mlp.c_proj": w[f"{b}feed_forward.linear2.{kind}"].T,
                }
                table |= {f"{a}{name}.{kind}": value for name, value in there.items()}
        missing = theirs.load_state_dict(table, strict=False)
        assert not missing.unexpected_keys and not missing.missing_keys
        tokens = random_tokens()
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)

    @pytest.mark.parametrize("kv", [4, 2])
    @pytest.mark.parametrize("preset", ["modern", "llama"])
    def test_rotary(self, preset, kv):
        from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

        config = _shape(preset, n_kv_heads=kv)
        ours = _randomized(GPTModel(config))
        shape = dict(
            vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=kv, head_dim=8, intermediate_size=config.ff_size,
            max_position_embeddings=16, rms_norm_eps=config.norm_eps,
            tie_word_embeddings=config.tie_weights,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )  # fmt: skip
        if preset == "modern":
            theirs = Qwen3ForCausalLM(Qwen3Config(**shape)).eval()
        else:
            theirs = LlamaForCausalLM(LlamaConfig(**shape)).eval()
        names = {
            "token_embedding": "model.embed_tokens", "ln_final": "model.norm", "blocks":
            "model.layers", "ln1": "input_layernorm", "ln2": "post_attention_layernorm",
            "attention": "self_attn", "feed_forward": "mlp", "W_q": "q_proj", "W_k": "k_proj",
            "W_v": "v_proj", "W_o": "o_proj", "gate": "gate_proj", "linear1": "up_proj",
            "linear2": "down_proj",
        }  # fmt: skip
        table = {
            ".".join(names.get(part, part) for part in key.split(".")): value
            for key, value in ours.state_dict().items()
        }
        missing = theirs.load_state_dict(table, strict=False)
        assert not missing.unexpected_keys and not missing.missing_keys
        tokens = random_tokens()
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, atol=1e-4, rtol=1e-4)
