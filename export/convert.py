"""The `gguf` stage: model folder -> GGUF files, published only with the proof that they compute the same."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acorn.stage import Job
from export.config import GgufConfig, LlamaCppExecution
from export.gguf import write_gguf
from export.huggingface import read_shape
from export.parity import GREEDY_TYPES
from export.vocabulary import read_vocabulary

KV_BLOCK = 256
"""llama.cpp rounds a context up to this."""


def run(job: Job) -> dict[str, float]:
    """Write every configured type to `job.out`, prove each, and return the metrics `export/<type>/*`.

    Without f32 and f16 among the types an f16 file in `job.scratch` is proven first.

    Raises ExportError (the model cannot be exported) or ParityError (an export differs from the model).
    """
    config: GgufConfig = job.config
    execution: LlamaCppExecution = job.execution
    model = job.inputs["model"]
    general = {str(key): value for key, value in config.general.items()}
    metrics: dict[str, float] = {}
    sheet: dict[str, Any] = {}
    paths: dict[str, Path] = {}
    with job.track() as tracker:
        for kind in config.types:
            paths[kind] = job.out / f"model-{kind}.gguf"
            written = write_gguf(model, paths[kind], kind, general)
            sheet[kind] = {"file": paths[kind].name, **asdict(written)}
            metrics[f"export/{kind}/bytes"] = written.bytes
            metrics[f"export/{kind}/bits_per_weight"] = written.bits_per_weight
        if not set(GREEDY_TYPES) & paths.keys():
            # Low-bit thresholds are too wide to show that the conversion itself is right: a file nobody keeps does.
            exact = job.scratch / "conversion-f16.gguf"
            write_gguf(model, exact, "f16", general)
            paths = {"f16": exact, **paths}
        proof, speed = prove(model, paths, config, job.inputs.get("corpus"), execution, job.device())
        for kind in config.types:
            metrics[f"export/{kind}/kl"] = proof["types"][kind]["kl"]
            metrics[f"export/{kind}/top1"] = proof["types"][kind]["top1"]
        tracker.log({**metrics, **speed})
    _write_json(job.out / "export.json", {"general": config.general, "types": sheet})
    _write_json(job.out / "parity.json", proof)
    return metrics


def prove(
    model: Path,
    paths: dict[str, Path],
    config: GgufConfig,
    corpus: Path | None,
    execution: LlamaCppExecution,
    device: str,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The proof (parity.json) and speed figures of the GGUFs in `paths`; ParityError if one of them fails.

    Tokenizer and template are compared through the first file: all hold the same ones.
    """
    from export import parity
    from export.llamacpp import LlamaCpp
    from export.reference import Reference

    settings = config.proof
    shape = read_shape(model)
    vocabulary = read_vocabulary(model, shape.rows)
    documents = parity.read_documents(corpus, max(settings.documents, 16))
    reference = Reference(model, device)
    held_out = parity.hold_out(reference, documents, settings, shape.context)
    context = min(shape.context, max(settings.window, KV_BLOCK) + settings.greedy_tokens)
    proof: dict[str, Any] = {"held_out": held_out.origin, "pre_tokenizer": vocabulary.pre, "types": {}}
    speed: dict[str, float] = {}
    for kind, path in paths.items():
        start = time.perf_counter()
        with LlamaCpp(path, context=context, threads=execution.threads, exact=True, verbose=execution.verbose) as llama:
            speed[f"export/{kind}/load_seconds"] = time.perf_counter() - start
            if "tokenizer" not in proof:
                proof["tokenizer"] = parity.tokenizer_parity(
                    reference, llama, vocabulary, documents[: settings.documents], settings
                )
                proof["template"] = parity.template_parity(reference, llama)
            found = parity.distribution_parity(llama, kind, held_out, settings)
            found["greedy"], speed[f"export/{kind}/tokens_per_second"] = parity.greedy_parity(
                reference, llama, kind, held_out, settings, context
            )
            proof["types"][kind] = found
    return proof, speed


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
