"""Safetensors checkpoints on disk: headers, byte ranges, shards, digests. Knows no model family."""

from blockexpand.checkpoint.ends import declare_end, end_of_turn, end_tokens, stated_ends
from blockexpand.checkpoint.folder import CONFIG, Checkpoint, open_checkpoint
from blockexpand.checkpoint.header import TensorEntry, build_header, num_bytes, num_elements, read_header
from blockexpand.checkpoint.other_files import OtherFiles, copy_files, other_files, write_config
from blockexpand.checkpoint.passes import (
    Place,
    TensorDigest,
    compare_tensors,
    copy_tensors,
    digest_tensors,
    refuse_not_finite,
)
from blockexpand.checkpoint.skeleton import skeleton_of, write_skeleton
from blockexpand.checkpoint.source import hub_name, locate_model, tokenizer_file
from blockexpand.checkpoint.writer import (
    OutputTensor,
    digest_of_minus_ones,
    lay_out,
    output_tensor,
    write_weights,
)
