"""A tiny model of every family that is served, as a table: what makes its kinds of block and options occur.

`ZOO` has one row a case: the family file it is for, the `model_type`, the settings beside the common ones, and
where new blocks go. Models are made in code with random weights; nothing is downloaded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

VOCABULARY = 96
TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
"""What most config classes call the sizes; a row takes out what its class has no such entry for."""
OUT = ...
"""Takes a common setting out."""
NO_HEAD = {"head_dim": OUT}
WINDOWS = {"use_sliding_window": True, "sliding_window": 8}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SHARED = EXPERTS | {"shared_expert_intermediate_size": 24}
MLA = {
    "kv_lora_rank": 12, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8,
    "head_dim": OUT, "num_key_value_heads": 4,
}  # fmt: skip
DEEPSEEK = MLA | {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "n_group": 2, "topk_group": 1,
    "n_shared_experts": 1,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
GEMMA3 = {
    "vision_config": VISION, "mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91,
    "eoi_token_index": 92,
}  # fmt: skip
MISTRAL3 = {
    "vision_config": VISION | {"model_type": "pixtral", "head_dim": 8}, "image_token_index": 90,
    "tie_word_embeddings": False,
}  # fmt: skip
QWEN_VL = {
    "vision_config": {
        "depth": 1, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "out_hidden_size": 32,
        "patch_size": 14, "fullatt_block_indexes": [0],
    },
    "image_token_id": 92, "video_token_id": 93, "vision_start_token_id": 94, "vision_end_token_id": 95,
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
LLAMA4 = {
    "vision_config": VISION | {
        "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16, "intermediate_size": 64,
    },
    "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92,
}  # fmt: skip
LLAMA4_TEXT = {"intermediate_size_mlp": 40, "num_local_experts": 4, "interleave_moe_layer_step": 2}


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tiny model."""

    family: str
    """The family file that serves it."""
    model_type: str
    """Its config class."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Beside, or instead of, the common ones; OUT takes an entry out."""
    request: dict[str, Any] = field(default_factory=lambda: {"blocks": 2})
    """Where new blocks go."""
    text: dict[str, Any] | None = None
    """For models of more than text: settings of the text stack."""

    @property
    def id(self) -> str:
        """A name for the test."""
        marks = [f"{k}={v}" for k, v in self.settings.items() if isinstance(v, str | bool | int)]
        return f"{self.model_type}-{'-'.join(marks)}"[:60]


def case(family: str, settings: dict[str, Any] | None = None, **more: Any) -> Case:
    """A row whose model_type is the family's name unless said otherwise."""
    return Case(family=family, **({"model_type": family, "settings": settings or {}} | more))


TIED = {"tie_word_embeddings": True}
FIVE = {"num_hidden_layers": 5}
SIX = {"num_hidden_layers": 6}
EIGHT = {"num_hidden_layers": 8}
GPT2 = {
    "hidden_size": OUT, "intermediate_size": OUT, "num_hidden_layers": OUT, "num_attention_heads": OUT,
    "num_key_value_heads": OUT, "head_dim": OUT, "max_position_embeddings": OUT,
}  # fmt: skip
NO_GROUPS = {"num_key_value_heads": OUT, "head_dim": OUT}
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 2, "mamba_chunk_size": 8}

MAMBA1 = NO_GROUPS | {
    "intermediate_size": OUT, "num_attention_heads": OUT, "max_position_embeddings": OUT, "state_size": 8,
    "time_step_rank": 4,
}  # fmt: skip

ZOO: tuple[Case, ...] = (
    case("llama", NO_HEAD),
    case("llama", NO_HEAD | {"attention_bias": True, "mlp_bias": True} | TIED),
    case("mistral", {"sliding_window": 8}),
    case("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    case("qwen2", NO_HEAD | WINDOWS | {"max_window_layers": 2}),
    case("qwen2_moe", NO_HEAD | SHARED),
    case("qwen2_moe", NO_HEAD | SHARED | FIVE | {"mlp_only_layers": [0, 3], "decoder_sparse_step": 2}),
    case("qwen2_moe", NO_HEAD | SHARED | WINDOWS | {"max_window_layers": 3, "qkv_bias": False}),
    case("qwen3", WINDOWS | {"max_window_layers": 2}),
    case("qwen3_moe", EXPERTS | {"mlp_only_layers": [1], "attention_bias": True}),
    case(
        "qwen3_next",
        SHARED
        | EIGHT
        | {
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "mlp_only_layers": [1],
        },
    ),
    case("gemma", {"attention_bias": True}),
    case("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}, request={"blocks": 4, "per_group": 2}),
    case("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    case("gemma3_text", EIGHT | {"sliding_window": 8, "query_pre_attn_scalar": 8}),
    case("phi", NO_GROUPS | {"num_key_value_heads": 2}),
    case("phi", NO_GROUPS | {"qk_layernorm": True}),
    case("phi3", NO_HEAD | {"sliding_window": 8}),
    case(
        "phimoe",
        NO_HEAD
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_bias": True,
            "lm_head_bias": True,
            "router_jitter_noise": 0.5,
        },
    ),
    case("olmo", NO_HEAD),
    case("olmo", NO_HEAD | {"attention_bias": True, "clip_qkv": 0.5}),
    case("olmo2", NO_HEAD),
    case("olmo3", NO_HEAD | EIGHT | {"sliding_window": 8}),
    case("olmoe", NO_HEAD | {"num_experts": 4, "num_experts_per_tok": 2}),
    case("glm", {"attention_bias": True}),
    case("glm4", {"attention_bias": True}),
    case(
        "glm4_moe",
        SIX
        | {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
            "first_k_dense_replace": 2,
            "n_group": 2,
            "topk_group": 1,
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    case("cohere", NO_HEAD | {"use_qk_norm": True, "attention_bias": True}),
    case("cohere", NO_HEAD),
    case("cohere2", EIGHT | {"sliding_window": 8, "head_dim": 8}),
    case("granite", NO_HEAD | {"residual_multiplier": 0.3, "attention_bias": True, "mlp_bias": True}),
    case("granitemoe", NO_HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    case("starcoder2", NO_HEAD | {"sliding_window": 8}),
    case("starcoder2", NO_HEAD | {"use_bias": False}),
    case("stablelm", NO_HEAD | {"use_qkv_bias": True, "qk_layernorm": True, "use_parallel_residual": True}),
    case("stablelm", NO_HEAD),
    case("gpt2", GPT2 | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128}),
    case(
        "gpt_neo",
        NO_GROUPS
        | {
            "num_hidden_layers": OUT,
            "num_attention_heads": OUT,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
            "window_size": 8,
        },
    ),
    case("gpt_neox", NO_GROUPS),
    case("gpt_neox", NO_GROUPS | {"use_parallel_residual": False, "attention_bias": False}),
    case("gptj", GPT2 | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128, "rotary_dim": 4}),
    case("falcon", NO_GROUPS | {"intermediate_size": OUT}),
    case(
        "falcon",
        NO_GROUPS | {"intermediate_size": OUT, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
    ),
    case("falcon", NO_GROUPS | {"intermediate_size": OUT, "parallel_attn": False, "alibi": True, "multi_query": False}),
    case("opt", NO_GROUPS | {"intermediate_size": OUT, "ffn_dim": 48, "word_embed_proj_dim": 32}),
    case("opt", NO_GROUPS | {"intermediate_size": OUT, "ffn_dim": 48, "word_embed_proj_dim": 16, "enable_bias": False}),
    case("bloom", GPT2 | {"hidden_size": 32, "n_head": 4, "n_layer": 4}),
    case("mpt", GPT2 | {"d_model": 32, "n_heads": 4, "n_layers": 4, "max_seq_len": 128}),
    case("exaone4", EIGHT | {"sliding_window": 8, "sliding_window_pattern": 4}),
    case("smollm3", NO_HEAD | EIGHT | {"use_sliding_window": True, "sliding_window": 8}),
    case("deepseek_v2", DEEPSEEK | {"first_k_dense_replace": 1, "topk_method": "greedy"}),
    case(
        "deepseek_v2",
        DEEPSEEK | {"first_k_dense_replace": 1, "topk_method": "greedy", "q_lora_rank": None, "attention_bias": True},
    ),
    case("deepseek_v3", DEEPSEEK | SIX | {"first_k_dense_replace": 2}),
    case("gpt_oss", {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8}),
    case(
        "llama4_text",
        EIGHT
        | {
            "intermediate_size_mlp": 40,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
            "interleave_moe_layer_step": 2,
            "attention_chunk_size": 16,
        },
    ),
    case("ernie4_5", {"use_bias": True}),
    case(
        "ernie4_5_moe",
        SIX
        | NO_HEAD
        | {
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_num_shared_experts": 1,
            "moe_layer_start_index": 2,
            "use_bias": True,
        },
    ),
    case(
        "jamba",
        NO_HEAD
        | EIGHT
        | {
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "attn_layer_period": 4,
            "attn_layer_offset": 2,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
        },
        request={"blocks": 4, "placement": "suffix"},
    ),
    case("bamba", NO_HEAD | MAMBA2 | {"attn_layer_indices": [1, 3]}),
    case(
        "granitemoehybrid",
        NO_HEAD
        | MAMBA2
        | {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba", "mamba"],
        },
    ),
    case(
        "granitemoehybrid",
        NO_HEAD
        | MAMBA2
        | {
            "num_local_experts": 0,
            "shared_intermediate_size": 24,
            "layer_types": ["mamba", "attention", "mamba", "mamba"],
        },
    ),
    case("lfm2", NO_HEAD | {"full_attn_idxs": [1, 3], "block_auto_adjust_ff_dim": False}),
    case(
        "mamba2",
        NO_GROUPS
        | {
            "intermediate_size": OUT,
            "num_attention_heads": OUT,
            "max_position_embeddings": OUT,
            "num_heads": 8,
            "head_dim": 8,
            "state_size": 8,
            "n_groups": 2,
            "chunk_size": 8,
        },
    ),
    case("nemotron", NO_HEAD),
    case("hunyuan_v1_dense", {"attention_bias": True}),
    case("seed_oss", {"attention_out_bias": True}),
    case("arcee", NO_HEAD | {"mlp_bias": True}),
    case("gpt_bigcode", GPT2 | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128}),
    case("codegen", GPT2 | {"n_embd": 32, "n_head": 4, "n_layer": 4, "n_positions": 128, "rotary_dim": 4}),
    case("mamba", MAMBA1),
    case("falcon_mamba", MAMBA1),
    case("falcon_h1", NO_HEAD | MAMBA2 | {"mamba_d_ssm": 64, "mamba_rms_norm": True}),
    case("ministral3", {"sliding_window": 8}),
    case("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": 2}),
    case(
        "lfm2_moe",
        NO_HEAD
        | SIX
        | EXPERTS
        | {
            "num_dense_layers": 2,
            "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
        },
    ),
    case("helium"),
    case("minimax_m2", {"num_local_experts": 4, "num_experts_per_tok": 2, "rotary_dim": 4}),
    case(
        "granitemoeshared",
        NO_HEAD | {"num_local_experts": 4, "num_experts_per_tok": 2, "shared_intermediate_size": 24},
    ),
    case("apertus", NO_HEAD),
    case("gemma3", GEMMA3, text={"sliding_window": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 8}),
    case("mistral3", MISTRAL3, text={"model_type": "mistral"}),
    case("qwen2_5_vl", QWEN_VL, text={"rope_parameters": MROPE, "head_dim": OUT}),
    case("llama4", LLAMA4, text=LLAMA4_TEXT),
)


def config_of(row: Case) -> Any:
    """The row's config."""
    values = {**(TEXT if row.text is None else {}), **row.settings}
    if row.text is not None:
        values["text_config"] = {k: v for k, v in {**TEXT, **row.text}.items() if v is not OUT}
    return CONFIG_MAPPING[row.model_type](**{k: v for k, v in values.items() if v is not OUT})


def build(row: Case, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The row's model with random weights, gains and biases moved away from one and zero, in eval mode."""
    torch.manual_seed(0)
    kind = AutoModelForCausalLM if row.text is None else AutoModelForImageTextToText
    model = kind.from_config(config_of(row))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4.0)
    return model.to(dtype).eval()


def write(row: Case, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """The row's checkpoint, by the names that files of the hub have."""
    build(row, dtype).save_pretrained(folder)
    return folder


QUICK = ("llama", "qwen2", "gemma3", "mixtral", "deepseek_v3", "mistral", "jamba", "gpt2")
"""Dense, biases, a norm behind each branch, experts, MLA, a window, Mamba, Conv1D; the rest is for `make test-all`."""


def rows(zoo: tuple[Case, ...]) -> list[Any]:
    """The zoo, all but the first of each quick family marked slow."""
    first = {family: next(i for i, row in enumerate(zoo) if row.family == family) for family in QUICK}
    return [
        pytest.param(row, id=f"{i}-{row.id}", marks=() if first.get(row.family) == i else pytest.mark.slow)
        for i, row in enumerate(zoo)
    ]
