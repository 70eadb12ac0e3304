"""The paper's studies as recipes: on the tiny base in minutes, on anybody's base with other settings."""

from blockexpand.studies.recipe import StudyRecipe, known_studies, load_study
from blockexpand.studies.running import Finding, study

__all__ = ["Finding", "StudyRecipe", "known_studies", "load_study", "study"]
