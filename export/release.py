"""The `release` stage: everything a stranger needs to use a model, in one folder that can be checked.

`README.md` (the model card), `<name>-<TYPE>.gguf`, the Hugging Face model itself (safetensors), `Modelfile`,
`parity.json`, `export.json`, `evaluation.json`, and `SHA256SUMS` over all of them. The folder is a hub repository as
it stands: transformers, llama.cpp and Ollama read it from there by its name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from pathlib import Path
from typing import Any

from acorn.gguf import ORIGIN
from acorn.stage import Job
from export.card import Facts, write_card
from export.config import ReleaseConfig
from export.history import input_digests, read_history
from export.huggingface import ExportError, read_json
from export.ollama import modelfile, read_turns

SUMS = "SHA256SUMS"
MODEL_FILES = ("*.safetensors", "*.json", "*.jinja")


def run(job: Job) -> dict[str, float]:
    """Write the folder to `job.out`; returns its size and number of files.

    Raises ExportError if the GGUF files were made from another model than `model`.
    """
    config: ReleaseConfig = job.config
    model, gguf = job.inputs["model"], job.inputs["gguf"]
    made_from = input_digests(gguf).get("model")
    if made_from is not None and made_from != job.digests["model"]:
        raise ExportError(
            f"inputs.gguf was exported from another model ({made_from[:12]}) than inputs.model "
            f"({job.digests['model'][:12]}): name the step that the gguf step names"
        )
    sheet, proof = read_json(gguf / "export.json"), read_json(gguf / "parity.json")
    name = slug(config.name or str(sheet["general"].get("name", "model")))
    with job.track() as tracker:
        copy_model(model, job.out)
        files = copy_ggufs(gguf, sheet, name, job.out)
        for report in ("export.json", "parity.json"):
            shutil.copyfile(gguf / report, job.out / report)
        scores, role = _evaluation(job)
        if scores:
            _write(job.out / "evaluation.json", json.dumps(scores, indent=2, ensure_ascii=False) + "\n")
        chosen: str = config.ollama_type or min(files, key=lambda kind: files[kind][1]["bytes"])
        if chosen not in files:
            raise ExportError(f"ollama_type is {chosen!r}; the export holds {', '.join(files)}")
        _write(job.out / "Modelfile", _modelfile(model, files[chosen][0], config))
        facts = Facts(
            name=name,
            license=config.model_license or sheet["general"].get("license") or _given_license(model),
            language=config.language,
            files=files,
            proof=proof,
            scores=scores,
            role=role,
            history=read_history([model]),
            parameters=next(iter(sheet["types"].values()))["weights"],
        )
        _write(job.out / "README.md", write_card(facts))
        count = write_sums(job.out)
        size = sum(path.stat().st_size for path in job.out.iterdir())
        metrics = {"release/files": float(count), "release/bytes": float(size)}
        tracker.log(metrics)
    return metrics


def slug(name: str) -> str:
    """`name` as a file name and a hub name can have it."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def copy_model(model: Path, out: Path) -> None:
    """The Hugging Face model: weights, config, tokenizer and template; nothing else of the folder."""
    for pattern in MODEL_FILES:
        for path in sorted(model.glob(pattern)):
            if path.name != "manifest.json":
                shutil.copyfile(path, out / path.name)


def copy_ggufs(gguf: Path, sheet: dict[str, Any], name: str, out: Path) -> dict[str, tuple[str, dict[str, Any]]]:
    """type -> (file name, what export.json says of it). The hub tells types apart by capitals at the name's end."""
    files = {}
    for kind, entry in sheet["types"].items():
        file = f"{name}-{kind.upper()}.gguf"
        shutil.copyfile(gguf / entry["file"], out / file)
        files[kind] = file, entry
    return files


def write_sums(folder: Path) -> int:
    """SHA256SUMS over every file of `folder`, as `sha256sum -c` reads it; returns how many there are."""
    lines = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != SUMS:
            with path.open("rb") as file:
                lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    _write(folder / SUMS, "".join(lines))
    return len(lines)


def _given_license(model: Path) -> str | None:
    """Licence that a model brought from a GGUF file, as long as nothing was trained on it."""
    path = model / ORIGIN
    return read_json(path)["general"].get("license") if path.is_file() else None


def _evaluation(job: Job) -> tuple[dict[str, Any], str | None]:
    """results.json, and the role that this model has in it."""
    folder = job.inputs.get("evaluation")
    if folder is None:
        return {}, None
    scores = read_json(folder / "results.json")
    digests = input_digests(folder)
    roles = [role for role in scores["models"] if digests.get(role) == job.digests["model"]]
    return scores, roles[0] if roles else None


def _modelfile(model: Path, gguf: str, config: ReleaseConfig) -> str:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(model)

    def render(talk: list[dict[str, str]], answer: bool) -> str:
        return tokenizer.apply_chat_template(talk, add_generation_prompt=answer, tokenize=False)  # type: ignore[no-any-return]

    found = read_json(model / "generation_config.json").get("eos_token_id", [])
    ends = found if isinstance(found, list) else [found]
    stop = dict.fromkeys([*tokenizer.convert_ids_to_tokens(ends), tokenizer.eos_token])
    return modelfile(gguf, read_turns(render), [token for token in stop if token], config.ollama_parameters)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
