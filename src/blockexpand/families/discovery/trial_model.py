"""Models made from a config alone: without memory to look at, or small with random weights to run.

In: the entries of a config.json. Out: every entry as transformers' config class fills it in, and models of it.
Refused, as `FamilyError` with the reason alone: a type without a causal language model in the installed
transformers, and a config of which none can be built. No remote code, no network, no file.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import re
from collections.abc import Generator, Iterator
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from blockexpand.errors import FamilyError

SEED = 20240104
"""Any fixed number; this one is the day the paper appeared."""
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    RuntimeError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
"""What code of a model raises when a config does not suit it."""


def has_language_model(model_type: str) -> bool:
    """Whether the installed transformers (or code that registered with it) has a causal language model of this type."""
    return model_type in CONFIG_MAPPING and CONFIG_MAPPING[model_type] in MODEL_FOR_CAUSAL_LM_MAPPING


def effective(config: dict[str, Any]) -> dict[str, Any]:
    """Every entry as it is in force: stated, derived or by default.

    Raises:
        FamilyError: the config class refuses it.
    """
    with attempted("transformers refuses the config"):
        return _configured(config).to_dict()


def attributes(model_type: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Other names that the config class takes for its entries, and what the entries are by default.

    Raises:
        FamilyError: the class has no defaults.
    """
    return dict(CONFIG_MAPPING[model_type].attribute_map), effective({"model_type": model_type})


def bare_model(config: dict[str, Any]) -> PreTrainedModel:
    """A model that has names and shapes, and no memory.

    Raises:
        FamilyError: transformers cannot build it.
    """
    with attempted("transformers cannot build it"), torch.device("meta"), no_init_weights():
        return _built(config)


def random_model(config: dict[str, Any]) -> PreTrainedModel:
    """A model with random weights in float32, in eval mode, gains and biases moved away from one and zero.

    Raises:
        FamilyError: transformers cannot build it.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(SEED)
        with attempted("transformers cannot build it"):
            model = _built(config)
        for parameter in model.parameters():
            if parameter.ndim < 2 or not bool(parameter.any()):
                parameter.add_(torch.randn_like(parameter) * 0.1)
            else:
                parameter.mul_(2.0)
    return model.eval().requires_grad_(False)


def run(model: nn.Module, tokens_BT: Tensor) -> Tensor:
    """The logits, without a cache: shape [B, T, V].

    Raises:
        FamilyError: the model fails, or gives what is not finite.
    """
    with attempted("a tiny model of it does not run"), torch.no_grad():
        logits_BTV = cast(Tensor, model(tokens_BT, use_cache=False).logits)
    if not bool(torch.isfinite(logits_BTV).all()):
        raise FamilyError("a tiny model of it with random weights gives logits that are not finite")
    return logits_BTV


@contextlib.contextmanager
def attempted(what: str) -> Generator[None]:
    """Whatever a model's own code raises inside becomes a reason in one line."""
    try:
        with quiet():
            yield
    except FAILURES as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise FamilyError(f"{what}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Without transformers' remarks: what it says of configs that are only tried is of no use to anybody."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _configured(config: dict[str, Any]) -> PreTrainedConfig:
    # Classes change what they are given.
    return CONFIG_MAPPING[config["model_type"]].from_dict(_with_floats(copy.deepcopy(config)))


def _with_floats(value: Any) -> Any:
    """With the numbers that JSON has no word for, as transformers writes them: {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(item) for key, item in value.items()}
    return [_with_floats(item) for item in value] if isinstance(value, list) else value


def _built(config: dict[str, Any]) -> PreTrainedModel:
    return cast(PreTrainedModel, AutoModelForCausalLM.from_config(_configured(config), dtype=torch.float32))


# --- small configs ---

VOCABULARY = 96
WINDOW = 8
"""Shorter than the sequences that are run, so that a window makes a difference."""
POSITIONS = 128
_EXPERTS, _USED = 4, 2
_SMALL = 16
"""Up to here a whole number is a count, a kernel or a rank that may stay."""
_NAMED: tuple[tuple[str, int], ...] = (
    (r"vocab_size\w*|\w*_vocab_size", VOCABULARY),
    (r"(max|original_max|n)_(position|seq)\w*|n_positions|n_ctx|\w*max_length|max_seq_len\w*", POSITIONS),
    (r"(sliding|attention|local)?_?window(_size)?|\w*attention_(window|chunk)_size|sliding_window_size", WINDOW),
    (r"\w*chunk_?size", WINDOW),
    (r"\w*(num|n)_(local_|routed_)?experts|num_local_experts", _EXPERTS),
    (r"\w*experts_per_tok(en)?|\w*top_?k|moe_k", _USED),
    (r"n_groups?|num_expert_groups?", 1),
    (r"topk_groups?", 1),
)
"""Names of config classes (transformers 5.24, models/*/configuration_*.py) and what they are at most."""
_HEADS = re.compile(r"\w*(num|n)_\w*heads?|\w*_heads|kv_n_heads")
_HEAD_WIDTHS = re.compile(r"\w*head_?(dim|size)|\w*d_head|kv_channels|rotary_dim")
_TOKEN = re.compile(r"\w*_token_(id|ids|index)")
_KEPT = re.compile(r"\w*(id|ids|idx)|transformers_version|\w*expand\w*|\w*kernel\w*|\w*conv\w*|mrope_\w*")


def candidates(config: dict[str, Any], keep: str) -> Iterator[dict[str, Any]]:
    """Smaller configs, the smallest first; the entry `keep` (the depth) is not touched."""
    heads = max([v for k, v in _numbers(config) if _HEADS.fullmatch(k)], default=1)
    for target in (4, 8, 16, heads):
        divisor = _power_of_two(heads // target)
        for head_width in (8, 4, 2, 1):
            yield {**_shrunk(config, divisor, head_width), keep: config[keep]}
    whole = {k: v for k, v in config.items() if isinstance(v, int) and not isinstance(v, bool)}
    yield {**config, **{key: _by_name(key, value) for key, value in whole.items()}}
    yield config


def _numbers(config: dict[str, Any]) -> list[tuple[str, int]]:
    """The whole numbers, nested ones too, by their own names."""
    found: list[tuple[str, int]] = []
    for key, value in config.items():
        if isinstance(value, dict):
            found += _numbers(value)
        elif isinstance(value, int) and not isinstance(value, bool):
            found.append((key, value))
    return found


def _power_of_two(number: int) -> int:
    return 1 << max(0, number.bit_length() - 1)


def _by_name(key: str, value: int) -> int:
    if _TOKEN.fullmatch(key):
        return min(value, VOCABULARY - 1)
    for pattern, most in _NAMED:
        if re.fullmatch(pattern, key):
            return min(value, most) if value > 0 else value
    return value


def _shrunk(config: dict[str, Any], heads: int, head_width: int) -> dict[str, Any]:
    """The config with counts of heads and widths of one head divided by these, and other widths by their product."""
    return {key: _smaller(key, value, heads, head_width) for key, value in config.items()}


def _smaller(key: str, value: Any, heads: int, head_width: int) -> Any:
    if isinstance(value, dict):
        return _shrunk(value, heads, head_width)
    if isinstance(value, list):
        per_head = _HEADS.fullmatch(key.removesuffix("_per_layer"))
        return [_smaller(key.removesuffix("_per_layer"), v, heads, head_width) for v in value] if per_head else value
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    named = _by_name(key, value)
    if named != value or any(re.fullmatch(pattern, key) for pattern, _ in _NAMED):
        return named
    if _HEADS.fullmatch(key):
        return max(1, value // heads)
    if _HEAD_WIDTHS.fullmatch(key):
        return max(4, value // head_width)
    if value <= _SMALL or _KEPT.fullmatch(key):
        return value
    # Grouped products of experts want rows of whole 16 bytes (torch 2.13, grouped_mm), 8 numbers in bfloat16.
    return -(-value // (8 * heads * head_width)) * 8
