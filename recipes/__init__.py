"""Recipes to call, or to give to a layer, a model or compile()."""
