"""From a YAML file to a run: reading and checking a recipe, then building and launching what it says."""
