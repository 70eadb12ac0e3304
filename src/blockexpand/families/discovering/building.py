"""Models made from a config alone: without memory to look at, or small with random weights to run.

In: the entries of a config.json. Out: every entry as transformers' config class fills it in, and models of it.
Refused, as `FamilyError` with the reason alone: a type without a causal language model in the installed
transformers, and a config of which none can be built. No remote code, no network, no file.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Generator
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
