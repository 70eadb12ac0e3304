"""Opening a model folder: what is found, and where the tensors' bytes are."""

from __future__ import annotations

from safetensors import safe_open

from blockexpand.checkpoint import open_checkpoint
from helpers import MakeBase


def test_a_single_file_is_opened_with_every_tensor_where_its_bytes_are(tiny_base: MakeBase):
    folder = tiny_base("qwen2")
    checkpoint = open_checkpoint(str(folder))
    assert not checkpoint.sharded
    assert checkpoint.shards == ("model.safetensors",)
    assert checkpoint.source == str(folder)
    assert checkpoint.config["model_type"] == "qwen2"
    assert checkpoint.metadata == {"format": "pt"}
    data = (folder / "model.safetensors").read_bytes()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(checkpoint.tensors)
        for name, entry in checkpoint.tensors.items():
            tensor = file.get_tensor(name)
            assert tuple(tensor.shape) == entry.shape
            assert entry.dtype == "BF16"
            assert tensor.view(dtype=__import__("torch").uint8).numpy().tobytes() == data[entry.start : entry.end]
    assert checkpoint.num_bytes == sum(entry.num_bytes for entry in checkpoint.tensors.values())
