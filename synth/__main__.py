"""`python -m synth RECIPE [--step NAME]`: the synth steps of a recipe; launchers start it with `--job FILE`."""

from acorn.__main__ import stage_main

if __name__ == "__main__":
    stage_main("synth")
