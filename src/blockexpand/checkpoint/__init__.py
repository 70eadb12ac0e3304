"""Safetensors checkpoints on disk: headers, byte ranges, shards, digests. Knows no model family."""

from blockexpand.checkpoint.ends import declare_end, end_of_turn, end_tokens, stated_ends
from blockexpand.checkpoint.folder import CONFIG, Checkpoint, open_checkpoint
from blockexpand.checkpoint.header import (
    Header,
    TensorEntry,
    build_header,
    num_bytes,
    num_elements,
    parse_header,
    read_header,
)
from blockexpand.checkpoint.other_files import OtherFiles, copy_files, other_files, write_config
from blockexpand.checkpoint.passes import (
    Comparison,
    Place,
    TensorDigest,
    compare_tensors,
    copy_tensors,
    digest_tensors,
    refuse_counted,
    refuse_not_finite,
)
from blockexpand.checkpoint.skeleton import skeleton_of, write_skeleton
from blockexpand.checkpoint.source import cache_folder, hub_name, locate_model, tokenizer_file
from blockexpand.checkpoint.writer import (
    OutputFile,
    OutputTensor,
    digest_of_minus_ones,
    drawn,
    lay_out,
    minus_ones,
    renamed,
    write_weights,
    zeros,
)

__all__ = [
    "Checkpoint",
    "TensorEntry",
    "Header",
    "num_bytes",
    "num_elements",
    "CONFIG",
    "open_checkpoint",
    "hub_name",
    "cache_folder",
    "locate_model",
    "tokenizer_file",
    "end_tokens",
    "end_of_turn",
    "stated_ends",
    "declare_end",
    "read_header",
    "parse_header",
    "TensorDigest",
    "digest_tensors",
    "refuse_not_finite",
    "refuse_counted",
    "Comparison",
    "compare_tensors",
    "OtherFiles",
    "other_files",
    "copy_files",
    "write_config",
    "OutputTensor",
    "OutputFile",
    "renamed",
    "zeros",
    "minus_ones",
    "drawn",
    "digest_of_minus_ones",
    "lay_out",
    "write_weights",
    "Place",
    "copy_tensors",
    "skeleton_of",
    "write_skeleton",
    "build_header",
]
