"""Training of our fusion beside a public backbone, which stays as it is: `python -m training.published`."""

from training.published.recipe import PROFILES, RECIPES, FusionRecipe, recipe_for

__all__ = ["PROFILES", "RECIPES", "FusionRecipe", "recipe_for"]
