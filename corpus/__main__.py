"""`python -m corpus RECIPE [--step NAME]`: the corpus steps of a recipe; launchers start it with `--job FILE`."""

from acorn.__main__ import stage_main

if __name__ == "__main__":
    stage_main("corpus")
