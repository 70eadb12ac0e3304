"""Models in memory: load one, find its block list, put another in its place, renumber it.

In: a folder, or a model that transformers built, and its family. Out: the model, its stack changed in place.
Refused: a folder that lacks a tensor, a model whose blocks are not where the family says. torch and
transformers are imported by the functions that need them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockexpand.errors import LiveError
from blockexpand.families.family import NUMBER, Family, Loader, is_fp8
from blockexpand.records.plan import BlockTensor

if TYPE_CHECKING:
    import torch
    from torch import nn

_INDEX = "layer_idx"
"""transformers' name, in every family, of the index by which a module finds its part of the KV cache."""


def stack_of(model: nn.Module, family: Family) -> nn.ModuleList:
    """The model's blocks.

    Raises:
        LiveError: there is no list of modules at the family's path.
    """
    from torch import nn

    try:
        stack = model.get_submodule(family.stack.module)
    except AttributeError:
        stack = None
    if not isinstance(stack, nn.ModuleList):
        raise LiveError(
            f"no list of blocks at {family.stack.module!r} in a {type(model).__name__}; expected a "
            f"{' or '.join(family.architectures)} as transformers loads it; unwrap the model first"
        )
    return stack


def put_stack(model: nn.Module, family: Family, blocks: Sequence[nn.Module]) -> None:
    """Make `blocks` the model's blocks and give each its index for the KV cache."""
    from torch import nn

    parent, _, name = family.stack.module.rpartition(".")
    stack = nn.ModuleList(blocks)
    stack.training = model.get_submodule(family.stack.module).training
    model.get_submodule(parent).register_module(name, stack)
    for index, block in enumerate(blocks):
        for module in block.modules():
            # The instance's own attribute: a class default would not be this block's index.
            if _INDEX in vars(module):
                vars(module)[_INDEX] = index


def config_entries(model: nn.Module) -> dict[str, Any]:
    """The loaded model's config as plain data.

    Raises:
        LiveError: the model has no config, so it is not a transformers model.
    """
    config = vars(model).get("config")
    if config is None:
        raise LiveError(f"a {type(model).__name__} has no config; expected a model loaded by transformers")
    return config.to_dict()


def set_config(model: nn.Module, family: Family, entries: dict[str, Any]) -> None:
    """Give text settings new values on the loaded model, for every part of it that holds a copy of them."""
    whole = vars(model)["config"]
    text = vars(whole).get(family.config_section, whole) if family.config_section else whole
    owner = vars(model.get_submodule(family.stack.module.rpartition(".")[0])).get("config")
    holders = {id(holder): holder for holder in (text, owner) if holder is not None}
    for holder in holders.values():
        holder.update(entries)


def greedy(model: Any, tokens_BT: torch.Tensor, num_tokens: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Greedy continuations through the cache, [B, T + `num_tokens`], and the logits [B, V] of each of their tokens."""
    import torch
    from transformers import GenerationConfig

    # A config of our own: the model's may sample, stop early, or ask for another kind of cache.
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=num_tokens,
        eos_token_id=None,
        pad_token_id=0,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    found = model.generate(tokens_BT, attention_mask=torch.ones_like(tokens_BT), generation_config=config)
    return found.sequences, found.logits


def parameters_of(block: nn.Module, family: Family, tensors: Sequence[BlockTensor]) -> dict[str, nn.Parameter]:
    """A block's parameters by their names in memory, without those that are no parameters in the plan."""
    kept = {family.block.name_in_memory(t.tail) for t in tensors if t.parameter}
    others = {family.block.name_in_memory(t.tail) for t in tensors if not t.parameter}
    return {name: p for name, p in block.named_parameters() if name in kept or name not in others}


def as_in_files(family: Family, block: int, tail: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A block's tensor in memory as the tensors that the files hold, by their names there; views where it can be.

    What transformers holds as one for all experts is taken apart again: first by expert, then (gate and up) by rows,
    into equal parts.
    """
    group = next((g for g in family.block.in_memory if g.memory == tail), None)
    if group is None:
        return {family.name_of(block, tail): tensor}
    parts = parts_of(group.files, tensor)
    assert len(parts) % len(group.files) == 0, f"{tail} is not made of {', '.join(group.files)}"
    return {family.name_of(block, file): part for file, part in parts.items()}


def parts_of(files: Sequence[str], whole: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor in memory as the tensors of these names, or of names with `{n}` for each expert; views."""
    if NUMBER not in files[0].split("."):
        return dict(zip(files, whole.chunk(len(files)), strict=False))
    return {
        pattern.replace(NUMBER, str(expert)): part
        for expert, one in enumerate(whole)
        for pattern, part in zip(files, one.chunk(len(files)), strict=False)
    }


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    loader: Loader = "text",
    places: dict[str, str] | None = None,
    scratch: Path | None = None,
    quantization: Any = None,
) -> nn.Module:
    """The model in a folder, in eval mode: no remote code, no network, no pickle; FP8 weights become floats.

    Without a `dtype` weights are held in the checkpoint's own type, as transformers does.
    On the device "meta" no weights are read: parameters have no memory, to be sharded and filled by the caller.
    `places` says where each module stays, and `scratch` takes what is left on the disk in another form than the files
    have (see `load_offloaded`). With `quantization`, one of transformers' configs, weights are quantised as they are
    loaded.

    Raises:
        LiveError: transformers cannot build it, or a tensor it needs is not in the files.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    loading_class = AutoModelForCausalLM if loader == "text" else AutoModelForImageTextToText
    if device == "meta":
        return _without_values(folder, dtype, loading_class)
    with no_progress_bars(), _told(folder):
        loaded: Any = loading_class.from_pretrained(
            str(folder),
            dtype=dtype or "auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            device_map=places if quantization is None else {"": device},
            offload_folder=None if scratch is None else str(scratch),
            **_numbers(folder, quantization),
        )
    model, info = loaded
    # transformers fills what is missing with random numbers and only warns.
    absent = [*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"])]
    if absent:
        raise LiveError(
            f"{folder} lacks the tensor {sorted(absent)[0]!r} ({len(absent)} in all) in the shape its config.json asks "
            "for; expected every tensor; write or download the folder again"
        )
    if quantization is not None:
        # It describes the loading, not the checkpoint, which stays what it is.
        vars(model.config).pop("quantization_config", None)
        return model.eval()
    if places is not None:
        return _in_memory_of_its_own(model.eval())
    return _in_memory_of_its_own(model.eval().to(device))


def load_offloaded(
    folder: Path, family: Family, *, dtype: torch.dtype, device: str = "cpu", scratch: Path
) -> nn.Module:
    """The same with its blocks left on the disk, for models larger than the memory: accelerate reads what it runs.

    `scratch` is a folder for tensors that transformers holds in another form than the files; it must outlive the model.

    Raises:
        LiveError: transformers cannot build it, or a tensor it needs is not in the files.
    """
    from accelerate.hooks import ModelHook, add_hook_to_module

    class OwnMemory(ModelHook):
        """Copies what was read out of the mapped file, as `load_model` does."""

        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
            _in_memory_of_its_own(module, recurse=False)
            return args, kwargs

    module = load_model(folder, dtype=dtype, device="meta", loader=family.loader)
    places, prefix = {f"{family.stack.module}.{i}": "disk" for i in range(len(stack_of(module, family)))}, ""
    for part in family.stack.module.split("."):
        beside = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        places |= {prefix + name: device for name, _ in (*module.named_children(), *beside) if name != part}
        module, prefix = module.get_submodule(part), f"{prefix}{part}."
    model = load_model(folder, dtype=dtype, device=device, loader=family.loader, places=places, scratch=scratch)
    for module in stack_of(model, family).modules():
        if "_hf_hook" in vars(module):
            add_hook_to_module(module, OwnMemory(), append=True)
    return model


@contextlib.contextmanager
def _told(folder: Path) -> Generator[None]:
    """What transformers raises of a folder that it cannot load, in one line.

    Raises:
        LiveError: it raised something.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, StrictDataclassError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise LiveError(
            f"transformers cannot load {folder}: {reason}; expected a model folder that this version of it knows; "
            "check the folder with `verify`"
        ) from error


def _numbers(folder: Path, quantization: Any) -> dict[str, Any]:
    """What to ask for so that weights are held as wished, FP8 ones as the numbers they stand for, on every device."""
    from transformers import FineGrainedFP8Config, PreTrainedConfig

    if quantization is not None:
        return {"quantization_config": quantization}
    config = PreTrainedConfig.get_config_dict(str(folder), local_files_only=True)[0]
    if not is_fp8(config):
        return {}
    kept = config["quantization_config"].get("modules_to_not_convert")
    return {"quantization_config": FineGrainedFP8Config(dequantize=True, modules_to_not_convert=kept)}


def _without_values(folder: Path, dtype: torch.dtype | None, loading_class: Any) -> nn.Module:
    """The model as its config.json describes it, its parameters on the meta device, its buffers as they will be."""
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    with _told(folder):
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        with init_empty_weights(include_buffers=False):
            model = loading_class.from_config(config, dtype=dtype or config.dtype, trust_remote_code=False)
            exact = loading_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    # What is computed when a model is built (tables of positions, say) is computed in float32 by transformers' loader.
    for buffer, precise in zip(model.buffers(), exact.buffers(), strict=True):
        buffer.copy_(precise)
    model.tie_weights()
    return model.eval()


def _in_memory_of_its_own(model: nn.Module, recurse: bool = True) -> nn.Module:
    """Copy each tensor out of the mapped file.

    A mapped tensor lies at the offset the file gives it. Vector code may add in another order at another
    alignment, so two files with the same numbers could differ in the last bit.
    """
    for parameter in model.parameters(recurse):
        if parameter.device.type == "cpu":
            parameter.data = parameter.data.clone()
    return model


@contextlib.contextmanager
def no_progress_bars() -> Generator[None]:
    """Reading and writing small files by the dozen is not worth a bar each."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
