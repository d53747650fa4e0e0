"""What the registry costs: hashing beside bare sha256, publication beside a plain copy, and a cache hit beside a read.

`python -m benchmarks.registry [--megabytes 256] [--files 8] [--repeats 5]`

Hashing is measured on files that are in the page cache, so the disk is out of it; "bare" is one thread running
`hashlib.sha256` over the same bytes in memory. Publication includes every fsync and stands beside copying the same
files and syncing them. A hit is `Registry.find` on a verified artifact; "bare" is reading and parsing its manifest
with `json`. Ways take turns and the best time counts.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from registry import Artifact, Registry, Spec
from registry.digest import hash_files
from registry.files import sync_tree

LOOPS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the artifact")
    parser.add_argument("--files", type=int, default=8, help="over how many files")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="acorn-registry-") as name:
        folder = Path(name)
        source = write_source(folder / "source", options.megabytes << 20, options.files)
        figures = measure_hashing(source, options.repeats) | measure_publication(source, folder, options.repeats)
        figures |= measure_hits(folder, options.repeats)
    report(figures)


def write_source(folder: Path, size: int, files: int) -> Path:
    folder.mkdir()
    for number in range(files):
        (folder / f"{number}.bin").write_bytes(os.urandom(size // files))
    sync_tree(folder)
    return folder


def measure_hashing(source: Path, repeats: int) -> dict[str, float]:
    """MB/s of bare sha256 in memory and of the registry's hashing of files."""
    paths = sorted(path.name for path in source.iterdir())
    contents = [(source / path).read_bytes() for path in paths]
    size = sum(map(len, contents)) / 1e6
    best = race(
        {
            "sha256_mb_s": lambda: [hashlib.sha256(content).hexdigest() for content in contents],
            "hash_files_mb_s": lambda: hash_files(source, paths),
        },
        repeats,
    )
    return {name: size / seconds for name, seconds in best.items()}


def measure_publication(source: Path, folder: Path, repeats: int) -> dict[str, float]:
    """Seconds of a synced copy, and of a build that fills `out` with the same copy and publishes it."""
    registry, attempts = Registry(folder / "home"), iter(range(10**6))

    def copy() -> None:
        target = folder / f"copy{next(attempts)}"
        shutil.copytree(source, target)
        sync_tree(target)
        shutil.rmtree(target)

    def publish() -> None:
        with registry.build(Spec("copy", 1, "data", {"attempt": next(attempts)})) as build:
            shutil.copytree(source, build.out, dirs_exist_ok=True)
            made = build.publish()
        shutil.rmtree(made.path)

    best = race({"copy_s": copy, "publish_s": publish}, repeats)
    return best | {"publish_over_copy": best["publish_s"] / best["copy_s"]}


def measure_hits(folder: Path, repeats: int) -> dict[str, float]:
    """Microseconds to find a verified artifact, by its number of files."""
    registry = Registry(folder / "home")
    figures: dict[str, float] = {}
    for files in (8, 1000):
        made = make_small(registry, files)
        time.sleep(0.2)  # younger files are hashed again: their times could hide a change
        registry.find(made.key)
        manifest, key = made.path / "manifest.json", made.key
        best = race(
            {
                f"read_{files}_files_us": lambda m=manifest: [json.loads(m.read_bytes()) for _ in range(LOOPS)],  # type: ignore[misc]
                f"hit_{files}_files_us": lambda k=key: [registry.find(k) for _ in range(LOOPS)],  # type: ignore[misc]
            },
            repeats * 10,
        )
        figures |= {name: seconds / LOOPS * 1e6 for name, seconds in best.items()}
    return figures


def make_small(registry: Registry, files: int) -> Artifact:
    with registry.build(Spec("small", 1, "data", {"files": files})) as build:
        for number in range(files):
            (build.out / f"{number:05}.json").write_text(str(number))
        return build.publish()


def race(ways: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Best seconds of each way, taking turns."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(repeats):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def report(figures: dict[str, float]) -> None:
    print(f"{'measure':<24}{'value':>12}")
    for name, value in figures.items():
        print(f"{name:<24}{value:>12,.2f}")
    ratio = figures["hash_files_mb_s"] / figures["sha256_mb_s"]
    print(f"{'hashing over bare sha256':<24}{ratio:>12,.2f}")
    rounded = {name: round(value, 3) for name, value in figures.items()}
    print(json.dumps({"benchmark": "registry", **rounded, "hash_ratio": round(ratio, 3), "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
