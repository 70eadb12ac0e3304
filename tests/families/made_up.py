"""An architecture that nobody else has, registered with transformers: odd names, biases, attention beside the MLP.

`QuaintConfig.mischief` makes one of it that structural discovery must refuse, or must treat with care.
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DynamicCache,
    GenerationMixin,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import CausalLMOutputWithPast

CACHE = next(f.name for f in fields(CausalLMOutputWithPast) if f.name in ("cache", "past_key_values"))


class QuaintConfig(PreTrainedConfig):
    model_type = "quaint"
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "storeys",
        "hidden_size": "girth",
        "num_attention_heads": "eyes",
    }
    girth: int = 16
    eyes: int = 2
    storeys: int = 4
    vocab_size: int = 96
    mischief: str = ""
    manners: list[str] | None = None
    shy_every: int = 0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        if self.manners is None and self.shy_every:
            self.manners = ["bold" if (i + 1) % self.shy_every else "shy" for i in range(self.storeys)]
        super().__post_init__(**kwargs)


class Gain(nn.Module):
    """RMS norm whose gain is stored as gain minus one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.excess = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1 + self.excess)


class Gaze(nn.Module):
    def __init__(self, config: QuaintConfig, index: int) -> None:
        super().__init__()
        self.eyes = config.eyes
        if config.mischief == "another name":
            self.place = [index]
        else:
            self.layer_idx = index
        self.cached = config.mischief == "index with a cache"
        self.shrink = index + 1 if config.mischief == "index" else 1
        self.take = nn.Linear(config.girth, 3 * config.girth)
        self.give = nn.Linear(config.girth, config.girth)

    def forward(self, x_BTH: Tensor, cache: Any) -> Tensor:
        batch, length, width = x_BTH.shape
        parts = self.take(x_BTH).view(batch, length, 3, self.eyes, width // self.eyes).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        if cache is not None:
            key, value = cache.update(key, value, vars(self)["place"][0] if "place" in vars(self) else self.layer_idx)
        seen = torch.ones(length, key.shape[2], dtype=torch.bool).tril(key.shape[2] - length)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        shrink = self.shrink * (self.layer_idx + 1) if self.cached and cache is not None else self.shrink
        return self.give(mixed.transpose(1, 2).reshape(batch, length, width)) / shrink


class Storey(nn.Module):
    def __init__(self, config: QuaintConfig, index: int) -> None:
        super().__init__()
        self.mischief = config.mischief
        self.temper = config.manners[index] if config.manners else "bold"
        if config.mischief == "first two":
            self.temper = "shy" if index < 2 else "bold"
        if config.mischief == "sized tensors" and config.girth >= 64:
            self.extra = nn.Parameter(torch.zeros(3))
        self.sweep = nn.LayerNorm(config.girth)
        self.gaze = Gaze(config, index)
        self.up = nn.Linear(config.girth, 24)
        self.down = nn.Linear(24, config.girth, bias=self.temper == "bold")
        if config.mischief == "post norm":
            self.after = Gain(config.girth)
        if config.mischief == "scaled stream":
            self.keep = nn.Parameter(torch.ones(config.girth))
        if config.mischief == "constant":
            self.register_buffer("drift", torch.ones(config.girth), persistent=False)

    def forward(self, x_BTH: Tensor, cache: Any) -> Tensor:
        swept_BTH = self.sweep(x_BTH)
        act = torch.tanh if self.temper == "shy" else nn.functional.gelu
        added_BTH = self.gaze(swept_BTH, cache) + self.down(act(self.up(swept_BTH)))
        if self.mischief == "post norm":
            added_BTH = self.after(added_BTH)
        if self.mischief == "scaled stream":
            return self.keep * x_BTH + added_BTH
        if self.mischief == "constant":
            return x_BTH + added_BTH + self.drift
        return x_BTH + added_BTH


class QuaintForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = QuaintConfig
    base_model_prefix = "house"
    _tied_weights_keys = {"voice.weight": "ear.weight"}  # noqa: RUF012

    def __init__(self, config: QuaintConfig) -> None:
        super().__init__(config)
        self.ear = nn.Embedding(config.vocab_size, config.girth)
        self.floors = nn.ModuleList(Storey(config, i) for i in range(config.storeys))
        if config.mischief == "shared":
            self.floors = nn.ModuleList([Storey(config, 0)] * config.storeys)
        if config.mischief == "two lists":
            self.doors = nn.ModuleList(nn.Identity() for _ in range(config.storeys))
        if config.mischief == "depth outside":
            self.weights = nn.Parameter(torch.ones(config.storeys))
        self.roof = nn.LayerNorm(config.girth)
        self.voice = nn.Linear(config.girth, config.vocab_size, bias=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.1)

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        if self.config.mischief == "not written":
            raise ValueError("no paper")
        super().save_pretrained(*args, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.ear

    def get_output_embeddings(self) -> nn.Module:
        return self.voice

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, use_cache: bool | None = None, **kwargs: Any
    ) -> CausalLMOutputWithPast:
        cache = kwargs.get(CACHE)
        if use_cache and cache is None:
            cache = DynamicCache(config=self.config)
        x_BTH = self.ear(input_ids)
        if self.config.mischief == "backwards":
            blocks = list(self.floors)[::-1]
        elif self.config.mischief == "fails":
            raise ValueError("the house has no door")
        else:
            blocks = list(self.floors)
        for floor in blocks:
            x_BTH = floor(x_BTH, cache if use_cache else None)
        scale = {"not finite": float("nan"), "depth after": float(len(blocks))}.get(self.config.mischief, 1.0)
        return CausalLMOutputWithPast(
            logits=self.voice(self.roof(x_BTH)) * scale, **{CACHE: cache if use_cache else None}
        )


def register() -> None:
    """Make the architecture known to transformers' automatic classes, once."""
    AutoConfig.register("quaint", QuaintConfig, exist_ok=True)
    AutoModelForCausalLM.register(QuaintConfig, QuaintForCausalLM, exist_ok=True)


def config_of(**settings: Any) -> dict[str, Any]:
    """A config.json of it."""
    return {
        "model_type": "quaint", "architectures": ["QuaintForCausalLM"], "girth": 16, "eyes": 2, "storeys": 4,
        "vocab_size": 96, "tie_word_embeddings": False, **settings,
    }  # fmt: skip


def write(folder: Path, **settings: Any) -> Path:
    """A checkpoint of it with random weights."""
    torch.manual_seed(0)
    model = QuaintForCausalLM(QuaintConfig(**{k: v for k, v in config_of(**settings).items() if k != "model_type"}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.eval().save_pretrained(folder)
    return folder
