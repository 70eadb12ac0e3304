"""Tiny models made in code, for every room's tests: no downloads, milliseconds to make.

`make_base` writes a plain Hugging Face folder of any family we serve; `make_tokenizer` gives it a tokenizer
trained on a few words. Weights are random with a fixed seed, and every norm gain and bias is moved away from
its initial one or zero, so that a test which mixes tensors up cannot pass by luck.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from blockexpand.checkpoint import Checkpoint, TensorEntry

CONFIGS = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config, "qwen3": Qwen3Config}
MakeBase = Callable[..., Path]
VOCABULARY = 96
HIDDEN = 32
CHAT_TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"


def tiny_config(family: str, *, blocks: int = 4, **settings: Any) -> Any:
    """A config of the family with grouped-query attention, unless `settings` say otherwise."""
    values: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": blocks,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    if family == "qwen3":
        values["head_dim"] = 8
    return CONFIGS[family](**(values | settings))


def tiny_model(
    family: str = "llama", *, dtype: torch.dtype = torch.float32, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """A model with random weights, in eval mode."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(tiny_config(family, **settings))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(4.0)
    return model.to(dtype).eval()


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A word tokenizer trained here, with a chat template."""
    words = "the cat sat on a mat and a dog ran to the red house while rain fell over old roofs"
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator([words], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
    )


def make_base(
    folder: Path,
    family: str = "llama",
    *,
    dtype: torch.dtype = torch.bfloat16,
    sharded: bool = False,
    seed: int = 0,
    **settings: Any,
) -> Path:
    """Write a tiny checkpoint with a tokenizer to `folder`; sharded means several small files."""
    model = tiny_model(family, dtype=dtype, seed=seed, **settings)
    model.save_pretrained(folder, max_shard_size="24KB" if sharded else "1GB")
    make_tokenizer().save_pretrained(folder)
    return folder


def load(folder: Path, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The model in a folder, as anybody would load it, in eval mode."""
    kwargs: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
    return AutoModelForCausalLM.from_pretrained(folder, **kwargs).eval()


def edit_json(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a JSON file in place; links are replaced, not followed."""
    data = json.loads(path.read_text())
    change(data)
    path.unlink()
    path.write_text(json.dumps(data, indent=2))


def edit_config(folder: Path, **entries: Any) -> Path:
    """Set entries of a folder's config.json; returns the folder."""
    edit_json(folder / "config.json", lambda config: config.update(entries))
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def shape_only(name: str, plain: dict[str, Any], dtype: str = "BF16") -> Checkpoint:
    """A checkpoint of a known model's shape, with no bytes: what planning sees of the real one."""
    config = CONFIGS[plain["model_type"]](**plain)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    tied = set() if not config.tie_word_embeddings else {"lm_head.weight"}
    tensors, position = {}, 0
    for tensor_name, tensor in sorted(model.state_dict().items()):
        if tensor_name not in tied:
            end = position + 2 * tensor.numel()
            shape = tuple(tensor.shape)
            tensors[tensor_name] = TensorEntry(
                file="model.safetensors", dtype=dtype, shape=shape, start=position, end=end
            )
            position = end
    return Checkpoint(
        source=name,
        folder=Path("nowhere"),
        config=plain,
        tensors=tensors,
        metadata={"format": "pt"},
        sharded=False,
    )


# From each model's config.json on the hub: the entries that shape it.
KNOWN_SHAPES: dict[str, dict[str, Any]] = {
    "llama2-7b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "tinyllama-1.1b": {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 2048,
        "intermediate_size": 5632, "num_hidden_layers": 22, "num_attention_heads": 32,
        "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "mistral-7b-v0.1": {
        "model_type": "mistral", "architectures": ["MistralForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
        "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
        "sliding_window": 4096, "tie_word_embeddings": False,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 896,
        "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "vocab_size": 151936, "max_position_embeddings": 32768,
        "max_window_layers": 24, "sliding_window": 32768, "use_sliding_window": False,
        "tie_word_embeddings": True,
    },
    "qwen3-8b": {
        "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "hidden_size": 4096,
        "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936,
        "max_position_embeddings": 40960, "max_window_layers": 36, "sliding_window": None,
        "use_sliding_window": False, "attention_bias": False, "tie_word_embeddings": False,
    },
}  # fmt: skip
