"""Decide where new blocks go; show it, cost it, save it. No tensor is read, no torch imported."""

from blockexpand.planning.cards import CARD, CardMark, identity_of, is_untouched, read_mark, signed, without_card
from blockexpand.planning.combining import Combined, combine, combine_in_memory
from blockexpand.planning.costing import Cost, backward_flops, forward_flops
from blockexpand.planning.drawing import draw, draw_rich
from blockexpand.planning.formulas import unsayable
from blockexpand.planning.guided import MEASURE_WORDS, BlockScore, Guidance, Measure
from blockexpand.planning.making import plan
from blockexpand.planning.placing import Insertion
from blockexpand.planning.plans import SILENT, BaseFacts, NewBlock, Placement, Plan, StackEntry, read_plan
from blockexpand.planning.record import AttachedPack, Check, ExpansionRecord, Proof, read_expansion
from blockexpand.planning.rewriting import Rewrite, base_entries, live_entries, rewrite, stack_entries
from blockexpand.planning.survey import BlockKind, BlockTensor, Init, Survey, layout_digest, started, survey

__all__ = [
    "plan",
    "Plan",
    "read_plan",
    "NewBlock",
    "Insertion",
    "StackEntry",
    "SILENT",
    "Placement",
    "Guidance",
    "BlockScore",
    "Measure",
    "MEASURE_WORDS",
    "BaseFacts",
    "BlockTensor",
    "BlockKind",
    "Init",
    "started",
    "Cost",
    "forward_flops",
    "backward_flops",
    "draw",
    "draw_rich",
    "Combined",
    "combine",
    "combine_in_memory",
    "AttachedPack",
    "ExpansionRecord",
    "read_expansion",
    "Proof",
    "Check",
    "CARD",
    "CardMark",
    "identity_of",
    "is_untouched",
    "read_mark",
    "signed",
    "without_card",
    "Survey",
    "survey",
    "layout_digest",
    "Rewrite",
    "rewrite",
    "unsayable",
    "base_entries",
    "live_entries",
    "stack_entries",
]
