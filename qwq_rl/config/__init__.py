"""Recipes: `recipe` reads YAML into dataclasses (`stages`, `blocks`, `pipeline`); `check` finds every mistake."""
