"""One registry for every artifact: content-addressed, verified on reading, safe to kill. See docs/registry.md."""

from registry.build import Build, Spec
from registry.digest import digest_folder
from registry.errors import DamagedArtifact, DiskFull, RegistryError, UnknownArtifact
from registry.keys import artifact_key, canonical_json
from registry.lineage import ABSENT
from registry.manifest import Manifest
from registry.store import Artifact, Registry

__all__ = [
    "ABSENT",
    "Artifact",
    "Build",
    "DamagedArtifact",
    "DiskFull",
    "Manifest",
    "Registry",
    "RegistryError",
    "Spec",
    "UnknownArtifact",
    "artifact_key",
    "canonical_json",
    "digest_folder",
]
