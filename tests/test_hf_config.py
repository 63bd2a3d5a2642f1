"""One model, said in the words of many versions of `config.json`; and what is another model."""

from __future__ import annotations

import pytest
import torch
from exports import edit_json, their_folder

from myllm.errors import InputError
from myllm.formats.hf_import import import_huggingface
from myllm.runs.weights import load_model

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SAME = [
    *(
        ("gpt2", (), {"activation_function": name})
        for name in ("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast")
    ),
    ("gpt2", ("activation_function", "tie_word_embeddings", "architectures"), {"n_inner": None}),
    (
        "gpt2",
        ("n_embd", "n_layer", "n_head", "n_positions"),
        {
            "hidden_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
        },
    ),
    ("llama", (), {"hidden_act": "swish", "head_dim": None, "pretraining_tp": 2}),
    ("llama", ("num_key_value_heads", "tie_word_embeddings", "head_dim", "dtype"), {}),
    ("llama", (), {"num_key_value_heads": None, "architectures": None, "sliding_window": 8}),
    ("llama", ("rope_parameters", "rope_scaling"), {"rope_theta": 50.0}),
    ("llama", ("rope_parameters",), {"rope_scaling": {"type": "default"}, "rope_theta": 50.0}),
    (
        "llama",
        ("rope_parameters",),
        {
            "rope_scaling": {
                "rope_type": "llama3", **LLAMA3, "original_max_position_embeddings": 8
            },
            "rope_theta": 50.0,
        },
    ),
    (
        "llama",
        ("rope_scaling", "rope_theta"),
        {"rope_parameters": {"rope_type": "llama3", **LLAMA3, "rope_theta": 50.0}},
    ),
    (
        "llama",
        (),
        {
            "rope_scaling": {"type": "default", "rope_theta": 70.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
        },
    ),
    ("modern", (), {"use_sliding_window": False, "sliding_window": 8}),
    ("modern", (), {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
    ("modern", (), {"layer_types": ["full_attention"], "architectures": ["Qwen3ForCausalLM"]}),
]  # fmt: skip
OTHER = [
    *(
        ("gpt2", {"activation_function": name}, f"activation_function is '{name}'")
        for name in ("gelu", "gelu_python", "gelu_10", "quick_gelu", "relu", "silu")
    ),
    ("gpt2", {"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
    ("gpt2", {"layer_norm_epsilon": float("nan")}, "norm_eps nan"),
    ("gpt2", {"n_positions": float("inf")}, "context_length"),
    ("llama", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("llama", {"attention_bias": True}, "attention_bias"),
    ("llama", {"architectures": ["LlamaForSequenceClassification"]}, "ForSequenceClassification"),
    ("llama", {"quantization_config": {"quant_method": "gptq"}}, r"quantized \(gptq\)"),
    ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llama", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
    ("llama", {"rope_scaling": "linear"}, "config.json"),
    ("llama", {"rope_scaling": {"full_attention": {"rope_theta": 5.0}}}, "differ between layers"),
    ("modern", {"use_sliding_window": True, "max_window_layers": 0}, "sliding window"),
    ("modern", {"layer_types": ["sliding_attention"]}, "sliding window"),
    ("modern", {"layer_types": 5}, "config.json"),
]


@pytest.mark.parametrize("preset, without, changes", SAME)
def test_the_same_model(tmp_path, char, preset, without, changes):
    """transformers computes the same from the same file."""
    from transformers import AutoModelForCausalLM

    folder = their_folder(tmp_path, char, preset, d_ff=64, tie_weights=preset == "gpt2")
    edit_json(folder / "config.json", *without, **changes)
    model, _, _ = load_model(import_huggingface(folder, tmp_path / "runs"))
    tokens = torch.randint(char.vocab_size, (2, 32), generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        expected = AutoModelForCausalLM.from_pretrained(folder)(tokens).logits
        torch.testing.assert_close(model(tokens), expected, atol=1e-4, rtol=1e-4)


def test_a_head_size_that_is_not_said(tmp_path, char):
    """Qwen3's is then 128, whatever the width."""
    folder = their_folder(tmp_path, char, "modern", head_dim=128)
    edit_json(folder / "config.json", "head_dim")
    assert import_huggingface(folder, tmp_path / "runs").config.model.head_size == 128


@pytest.mark.parametrize("preset, changes, words", OTHER)
def test_another_model(tmp_path, char, preset, changes, words):
    folder = their_folder(tmp_path, char, preset)
    edit_json(folder / "config.json", **changes)
    with pytest.raises(InputError, match=words):
        import_huggingface(folder, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
