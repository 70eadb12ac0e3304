"""Methods side by side at equal budget: the runs, the paired statistics."""

from blockexpand.comparison.compare import compare, load_recipe
from blockexpand.comparison.summary import over_seeds
from blockexpand.records.comparison import CompareRecipe, Comparison, read_comparison
