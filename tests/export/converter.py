"""llama.cpp's own converter, out of the source package of llama-cpp-python, run on folders of ours.

Started as a process: `python tests/export/converter.py FOLDER < jobs`, where FOLDER holds llama.cpp's sources and jobs
is a JSON list of `[model folder, target file, type, pre-tokenizer]`. It uses the gguf-py beside it. Patched is one
function: the one that looks a tokenizer up by a hash of what it makes of a text, and knows none that was trained here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "0.3.36"
WANTED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/")


class Unreachable(RuntimeError):
    """The package index does not answer."""


def fetch(cache: Path) -> Path:
    """The folder of llama.cpp's sources, from `cache` or from the package index. Raises Unreachable."""
    folder = cache / f"llama-cpp-python-{VERSION}"
    if folder.exists():
        return folder
    with tempfile.TemporaryDirectory(dir=cache) as name:
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", "llama-cpp-python"]
        command += ["--disable-pip-version-check", "--retries", "1", "--dest", name, f"llama-cpp-python=={VERSION}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unreachable(done.stderr.strip()[-300:])
        (archive,) = Path(name).glob("*.tar.gz")
        prefix = f"{archive.name.removesuffix('.tar.gz')}/vendor/llama.cpp/"
        with tarfile.open(archive) as package:
            for member in package:
                if member.name.startswith(tuple(prefix + wanted for wanted in WANTED)):
                    member.name = member.name.removeprefix(prefix)
                    package.extract(member, Path(name) / "sources", filter="data")
        (Path(name) / "sources").rename(folder)
    return folder


def convert(sources: Path, jobs: list[tuple[Path, Path, str, str]]) -> None:
    """Convert model folders with llama.cpp's converter, all in one process."""
    text = json.dumps([[str(part) for part in job] for job in jobs])
    command = [sys.executable, __file__, str(sources)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def main(sources: Path) -> None:
    sys.path[:0] = [str(sources / "gguf-py"), str(sources)]
    import convert_hf_to_gguf  # type: ignore[import-not-found]
    from conversion.base import TextModel  # type: ignore[import-not-found]

    for model, target, kind, pre in json.load(sys.stdin):
        TextModel.get_vocab_base_pre = lambda self, tokenizer, name=pre: name
        sys.argv = ["convert_hf_to_gguf.py", "--outfile", target, "--outtype", kind, model]
        convert_hf_to_gguf.main()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
