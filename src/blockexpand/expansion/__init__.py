"""A plan and a base checkpoint become a deeper checkpoint, and the proof that it is the same model."""

from blockexpand.expansion.cards import CARD, CardMark, identity_of, is_untouched, read_mark, signed, without_card
from blockexpand.expansion.combining import Combined, combine, combine_in_memory
from blockexpand.expansion.costing import Cost, backward_flops, forward_flops
from blockexpand.expansion.drawing import draw, draw_rich
from blockexpand.expansion.expanding import check_fit, expand
from blockexpand.expansion.formulas import unsayable
from blockexpand.expansion.making import plan
from blockexpand.expansion.placing import Insertion
from blockexpand.expansion.plans import SILENT, BaseFacts, NewBlock, Placement, Plan, StackEntry, read_plan
from blockexpand.expansion.record import AttachedPack, Check, ExpansionRecord, Proof, read_expansion
from blockexpand.expansion.rewriting import Rewrite, base_entries, live_entries, rewrite, stack_entries
from blockexpand.expansion.survey import BlockKind, BlockTensor, Init, Survey, layout_digest, started, survey
from blockexpand.expansion.verifying import verify

__all__ = [
    "plan",
    "Plan",
    "read_plan",
    "NewBlock",
    "Insertion",
    "StackEntry",
    "SILENT",
    "Placement",
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
    "expand",
    "verify",
    "check_fit",
]
