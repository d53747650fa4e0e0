"""`python -m search RECIPE [--step NAME]`: the search steps of a recipe; launchers start it with `--job FILE`."""

from acorn.__main__ import stage_main

if __name__ == "__main__":
    stage_main("search")
