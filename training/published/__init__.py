"""Training of our fusion beside a public backbone, which stays as it is: `python -m training.published`."""

from training.published.recipe import RECIPES, FusionRecipe

__all__ = ["RECIPES", "FusionRecipe"]
