"""Imports an original nanotron config (the YAML that its run_train.py takes) as an acorn recipe.

Every field of the file gets a `Fate`: carried over, replaced, or left out, and why; none is dropped in silence. Fields
of later nanotrons are known by name where the published configs have them (SmolLM 1 and 2, nanotron's examples).
Nothing heavy is imported: names and types are compared with nanotron's own classes by a test, and by `acorn plan`.
"""

from __future__ import annotations

from pretrain.importing.original import CannotImport, Fate
from pretrain.importing.recipe import Imported, import_config

__all__ = ["CannotImport", "Fate", "Imported", "import_config"]
