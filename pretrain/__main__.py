"""`python -m pretrain RECIPE [--step NAME]`: the pretrain steps of a recipe; launchers start it with `--job FILE`."""

from acorn.__main__ import stage_main

if __name__ == "__main__":
    stage_main("pretrain")
