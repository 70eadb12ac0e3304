"""A random bf16 Llama checkpoint of a given shape, written with nothing but the standard library."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

_BF16_BYTES = 2
_POOL_BYTES = 8 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class LlamaShape:
    """The sizes of a Llama, and how it is to be expanded."""

    num_blocks: int
    num_new: int
    hidden: int
    intermediate: int
    num_heads: int
    num_kv_heads: int
    vocabulary: int
    shard_bytes: int

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Every tensor's name and shape, in the order of the stack."""
        key_value = self.hidden // self.num_heads * self.num_kv_heads
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for block in range(self.num_blocks):
            inside = {
                "input_layernorm": (self.hidden,),
                "self_attn.q_proj": (self.hidden, self.hidden),
                "self_attn.k_proj": (key_value, self.hidden),
                "self_attn.v_proj": (key_value, self.hidden),
                "self_attn.o_proj": (self.hidden, self.hidden),
                "post_attention_layernorm": (self.hidden,),
                "mlp.gate_proj": (self.intermediate, self.hidden),
                "mlp.up_proj": (self.intermediate, self.hidden),
                "mlp.down_proj": (self.hidden, self.intermediate),
            }
            yield from ((f"model.layers.{block}.{tail}.weight", shape) for tail, shape in inside.items())
        yield "model.norm.weight", (self.hidden,)
        yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self) -> dict[str, object]:
        """The config.json that goes with them."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "bfloat16",
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.num_blocks,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 2048,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": False,
        }

    @property
    def base_bytes(self) -> int:
        """The bytes of all tensors."""
        return sum(_num_bytes(shape) for _, shape in self.tensors())

    @property
    def expanded_bytes(self) -> int:
        """The same with the new blocks."""
        block = sum(_num_bytes(shape) for name, shape in self.tensors() if name.startswith("model.layers.0."))
        return self.base_bytes + self.num_new * block


SHAPES = {
    "tiny": LlamaShape(
        num_blocks=8, num_new=2, hidden=64, intermediate=176, num_heads=4, num_kv_heads=2, vocabulary=256,
        shard_bytes=1 << 18,
    ),
    "1.1b": LlamaShape(
        num_blocks=22, num_new=2, hidden=2048, intermediate=5632, num_heads=32, num_kv_heads=4, vocabulary=32000,
        shard_bytes=10**9,
    ),
    "7b": LlamaShape(
        num_blocks=32, num_new=8, hidden=4096, intermediate=11008, num_heads=32, num_kv_heads=32, vocabulary=32000,
        shard_bytes=5 * 10**9,
    ),
}  # fmt: skip


def _num_bytes(shape: Sequence[int]) -> int:
    total = _BF16_BYTES
    for size in shape:
        total *= size
    return total


def write_llama(folder: Path, shape: LlamaShape) -> None:
    """Write a checkpoint of this shape, finite random bf16 in it, with nothing but the standard library."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2), encoding="utf-8")
    shards: list[list[tuple[str, tuple[int, ...]]]] = [[]]
    size = 0
    for name, sizes in shape.tensors():
        if shards[-1] and size + _num_bytes(sizes) > shape.shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append((name, sizes))
        size += _num_bytes(sizes)
    pool = _random_bf16()
    weight_map = {}
    for number, tensors in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_shard(folder / file, tensors, pool)
        weight_map |= {name: file for name, _ in tensors}
    index = {"metadata": {"total_size": shape.base_bytes}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def _random_bf16() -> memoryview:
    """Numbers between 0.002 and 0.016 of either sign, as weights are; written twice over, so any start will do."""
    # The upper byte holds the sign and seven bits of the exponent, the lower its last bit and the mantissa.
    upper = os.urandom(_POOL_BYTES // 2).translate(bytes((0x3B, 0x3C, 0xBB, 0xBC)) * 64)
    pool = bytearray(_POOL_BYTES)
    pool[0::2], pool[1::2] = os.urandom(_POOL_BYTES // 2), upper
    return memoryview(pool + pool)


def _write_shard(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]], pool: memoryview) -> None:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in tensors:
        end = position + _num_bytes(shape)
        entries[name] = {"dtype": "BF16", "shape": shape, "data_offsets": (position, end)}
        position = end
    header = json.dumps(entries, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "xb", buffering=0) as stream:
        stream.write(len(header).to_bytes(8, "little") + header)
        for name, shape in tensors:
            remaining, start = _num_bytes(shape), _BF16_BYTES * (hash(name) % (_POOL_BYTES // _BF16_BYTES))
            while remaining:
                written = stream.write(pool[start : start + min(remaining, _POOL_BYTES)])
                remaining -= written
        os.fsync(stream.fileno())
