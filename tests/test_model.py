"""The model: shapes, variants, the laws of causality and of the cache, other programs' layouts."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

from myllm.config import GPTConfig
from myllm.errors import ConfigError, InputError
from myllm.model import ATTENTIONS, Dropout, FlashAttention, GPTModel, KVCache, MultiHeadAttention
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
    monkeypatch.setattr("myllm.model.QUERY_BLOCK", 5)  # the short texts here have joints, too
    torch.manual_seed(1)
    model = GPTModel(dataclasses.replace(SHAPE, attention=attention, **changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def random_tokens(B: int = 2, T: int = 16) -> torch.Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(2))


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

    def test_flash_agrees_with_manual(self, variant):
        other = "manual" if variant.config.attention == "flash" else "flash"
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

    @pytest.mark.parametrize("dropout", [0.0, 0.2])
    def test_recomputed_blocks_give_the_same_gradients(self, model_config, dropout):
        model = GPTModel(dataclasses.replace(model_config, dropout=dropout))
        found = []
        for model.recompute in (False, True):
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
        small_model(random_tokens(1, 16), cache)
        with pytest.raises(InputError):
            small_model(random_tokens(1, 1), cache)

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
            (dict(norm="batchnorm"), "choices: layernorm, rmsnorm"),
            (dict(dropout=1.0), "dropout 1.0"),
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
