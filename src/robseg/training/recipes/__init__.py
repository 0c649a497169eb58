"""Recipes: what they say, how they are read, and, as YAML, those that come with the package."""
