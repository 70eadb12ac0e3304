"""Methods side by side at equal budget: the recipe, the runs, the paired statistics."""

from blockexpand.comparison.comparing import compare, load_recipe
from blockexpand.comparison.recipe import ArmRecipe, CompareRecipe, PlanRecipe
from blockexpand.comparison.results import ArmResult, Comparison, Trial, read_comparison

__all__ = [
    "ArmRecipe",
    "ArmResult",
    "CompareRecipe",
    "Comparison",
    "PlanRecipe",
    "Trial",
    "compare",
    "load_recipe",
    "read_comparison",
]
