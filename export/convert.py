"""The `gguf` stage: model folder -> GGUF files, published only with the proof that they compute the same."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from acorn.stage import Job
from export.config import WRITTEN_HERE, GgufConfig, LlamaCppExecution
from export.gguf import Written, write_gguf
from export.huggingface import read_shape
from export.llamacpp import default_threads
from export.quants import quantise
from export.vocabulary import read_vocabulary

KV_BLOCK = 256
"""llama.cpp rounds a context up to this."""


def run(job: Job) -> dict[str, float]:
    """Write every configured type to `job.out`, prove each, and return the metrics `export/<type>/*`.

    The conversion itself is proven at f32, on a file in `job.scratch` if none is asked for: the thresholds of smaller
    types are too wide to show that it is right.

    Raises ExportError (the model cannot be exported) or ParityError (an export differs from the model).
    """
    config: GgufConfig = job.config
    model = job.inputs["model"]
    general = {str(key): value for key, value in config.general.items()}
    metrics: dict[str, float] = {}
    sheet: dict[str, Any] = {}
    exact = job.out / "model-f32.gguf" if "f32" in config.types else job.scratch / "conversion-f32.gguf"
    paths: dict[str, Path] = {"f32": exact}
    importance: dict[str, Any] | None = None
    with job.track() as tracker:
        whole = write_gguf(model, exact, "f32", general)
        for kind in config.types:
            paths[kind] = job.out / f"model-{kind}.gguf"
            if kind == "f32":
                written = whole
            elif kind in WRITTEN_HERE:
                written = write_gguf(model, paths[kind], kind, general)
            else:
                importance = _importance(job) if importance is None else importance
                threads = job.execution.threads or default_threads()
                written = quantise(exact, paths[kind], kind, importance, threads, job.execution.verbose)
            sheet[kind] = {"file": paths[kind].name, **asdict(written)}
            metrics |= _sizes(kind, written)
        proof, speed = prove(model, paths, config, job.inputs.get("corpus"), job.execution, job.device())
        for kind in config.types:
            found = proof["types"][kind]
            metrics |= {f"export/{kind}/{name}": found[name] for name in ("kl", "top1", "perplexity_delta")}
            metrics |= {name: value for name, value in speed.items() if name.startswith(f"export/{kind}/")}
        tracker.log(metrics)
    _write_json(job.out / "export.json", {"general": config.general, "types": sheet})
    _write_json(job.out / "parity.json", proof)
    (job.scratch / "conversion-f32.gguf").unlink(missing_ok=True)
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
    from export import parity, tokens
    from export.llamacpp import LlamaCpp
    from export.reference import Reference

    settings = config.proof
    shape = read_shape(model)
    vocabulary = read_vocabulary(model, shape.rows)
    documents = parity.read_documents(corpus, max(settings.documents, 16))
    reference = Reference(model, device)
    held_out = parity.hold_out(reference, documents, settings, shape.context)
    context = min(shape.context, max(settings.window, KV_BLOCK) + settings.greedy_tokens)
    proof: dict[str, Any] = {"held_out": held_out.origin, "pre_tokenizer": vocabulary.pre}
    proof["adversary"] = tokens.adversarial_parity(model, vocabulary, settings, execution.threads)
    proof["types"] = {}
    speed: dict[str, float] = {}
    for kind, path in paths.items():
        start = time.perf_counter()
        with LlamaCpp(path, context=context, threads=execution.threads, exact=True, verbose=execution.verbose) as llama:
            speed[f"export/{kind}/load_seconds"] = time.perf_counter() - start
            if "tokenizer" not in proof:
                proof["tokenizer"] = tokens.tokenizer_parity(
                    reference.tokenize, llama, vocabulary, documents[: settings.documents], settings
                )
                proof["template"] = parity.template_parity(reference, llama)
            found = parity.distribution_parity(llama, kind, held_out, settings)
            found["greedy"], speed[f"export/{kind}/tokens_per_second"] = parity.greedy_parity(
                reference, llama, kind, held_out, settings, context
            )
            proof["types"][kind] = found
    return proof, speed


def _importance(job: Job) -> dict[str, Any]:
    """The importance matrix; empty without a corpus, or with `importance_tokens` 0."""
    tokens, corpus = job.config.importance_tokens, job.inputs.get("corpus")
    if corpus is None or not tokens:
        return {}
    from export.importance import measure_importance
    from export.reference import Reference

    model = job.inputs["model"]
    return measure_importance(Reference(model, job.device()), read_shape(model), corpus, tokens)


def _sizes(kind: str, written: Written) -> dict[str, float]:
    sizes = {"bytes": written.bytes, "bits_per_weight": written.bits_per_weight}
    tensors = {f"tensors_{name}": count for name, count in written.tensor_types.items()}
    return {f"export/{kind}/{name}": float(value) for name, value in (sizes | tensors).items()}


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
