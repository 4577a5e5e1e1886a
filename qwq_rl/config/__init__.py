"""From YAML to dataclasses: every field of a recipe, and `check`, which finds every mistake of one."""
