"""Methods side by side at equal budget: the recipe, the runs, the paired statistics."""

from blockexpand.comparison.comparing import compare, load_recipe
from blockexpand.comparison.examination import BlockEffect, Examination, Seen, Shift, read_examination
from blockexpand.comparison.recipe import ArmRecipe, CompareRecipe, ExamineSettings, PlanRecipe
from blockexpand.comparison.results import ArmResult, Comparison, Summary, Trial, over_seeds, read_comparison

__all__ = [
    "ArmRecipe",
    "ArmResult",
    "BlockEffect",
    "CompareRecipe",
    "Comparison",
    "ExamineSettings",
    "Examination",
    "PlanRecipe",
    "Seen",
    "Shift",
    "Summary",
    "Trial",
    "compare",
    "load_recipe",
    "over_seeds",
    "read_comparison",
    "read_examination",
]
