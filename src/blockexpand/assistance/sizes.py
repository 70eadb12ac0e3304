"""Sizes of open models that people start from, and what they keep in memory.

Shapes are those of the models' config.json on the hub (Qwen2.5 0.5B to 32B, Llama 3.1 8B and 70B).
"""

from __future__ import annotations

import dataclasses

_TRAINED_BYTES = 16
"""Of each number that trains: master, gradient and two moments, in float32."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A dense decoder: the shapes that count its parameters."""

    name: str
    num_blocks: int
    hidden: int
    intermediate: int
    key_values: int
    """Key heads times their size."""
    vocabulary: int
    tied: bool = False
    """Whether the head is the embeddings."""

    @property
    def block(self) -> int:
        """Parameters of a block, norms and biases left out."""
        return 2 * self.hidden * (self.hidden + self.key_values) + 3 * self.hidden * self.intermediate

    @property
    def outside(self) -> int:
        """Parameters outside the blocks."""
        return (1 if self.tied else 2) * self.vocabulary * self.hidden

    @property
    def num_new(self) -> int:
        """New blocks: one for four old ones, as the paper has them (section 3: 8 for 32)."""
        return max(1, self.num_blocks // 4)


def _size(name: str, blocks: int, hidden: int, intermediate: int, rest: tuple[int, int, bool]) -> Size:
    key_values, vocabulary, tied = rest
    return Size(
        name=name,
        num_blocks=blocks,
        hidden=hidden,
        intermediate=intermediate,
        key_values=key_values,
        vocabulary=vocabulary,
        tied=tied,
    )


SIZES = (
    _size("0.5B", 24, 896, 4864, (128, 151936, True)),
    _size("1.5B", 28, 1536, 8960, (256, 151936, True)),
    _size("3B", 36, 2048, 11008, (256, 151936, True)),
    _size("8B", 32, 4096, 14336, (1024, 128256, False)),
    _size("14B", 48, 5120, 13824, (1024, 152064, False)),
    _size("32B", 64, 5120, 27648, (1024, 152064, False)),
    _size("70B", 80, 8192, 28672, (1024, 128256, False)),
)
"""From small to large."""


def state_bytes(size: Size, width: float, trains: str) -> int:
    """Bytes of weights and of what trains, for the model with its new blocks.

    Args:
        size: The base.
        width: Bytes of each number in the old blocks' matrices.
        trains: "nothing", "new" (the new blocks), or "all".
    """
    old, new = size.num_blocks * size.block, size.num_new * size.block
    if trains == "all":
        return _TRAINED_BYTES * (old + new + size.outside)
    return round(width * old) + 2 * size.outside + (_TRAINED_BYTES if trains == "new" else 2) * new
