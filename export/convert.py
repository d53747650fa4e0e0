"""The `gguf` stage: model folder -> GGUF files, published only with the proof that they compute the same."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from acorn.stage import Job
from engine.limits import default_threads
from export.config import NEED_IMPORTANCE, WRITTEN_HERE, GgufConfig, LlamaCppExecution, Proof
from export.gguf import Written, read_written, write_gguf
from export.huggingface import read_shape
from export.quants import quantise
from export.vocabulary import read_vocabulary

if TYPE_CHECKING:
    from export.llamacpp import LlamaCpp
    from export.parity import HeldOut

KV_BLOCK = 256
"""llama.cpp rounds a context up to this."""


def run(job: Job) -> dict[str, float]:
    """Write every configured type to `job.out`, prove each, and return the metrics `export/<type>/*`.

    The conversion itself is proven at f32, on a file in `job.scratch` if none is asked for: the thresholds of smaller
    types are too wide to show that it is right.

    Raises ExportError (the model cannot be exported) or ParityError (an export differs from the model).
    """
    config: GgufConfig = job.config
    metrics: dict[str, float] = {}
    sheet: dict[str, Any] = {}
    with job.track() as tracker:
        files = _write(job)
        proof, speed = prove(
            job.inputs["model"], files.paths, config, job.inputs.get("corpus"), job.execution, job.device(), files.plain
        )
        for kind in config.types:
            path, found = files.paths[kind], proof["types"][kind]
            written = read_written(path) if kind in files.plain else files.written[kind]
            sheet[kind] = {"file": path.name, **asdict(written)}
            metrics |= _sizes(kind, written)
            metrics |= {f"export/{kind}/{name}": found[name] for name in ("kl", "top1", "perplexity_delta")}
            metrics |= {name: value for name, value in speed.items() if name.startswith(f"export/{kind}/")}
        tracker.log(metrics)
    _write_json(job.out / "export.json", {"general": config.general, "types": sheet})
    _write_json(job.out / "parity.json", proof)
    (job.scratch / "conversion-f32.gguf").unlink(missing_ok=True)
    return metrics


@dataclass
class _Files:
    """By type: the files, what is in them, and for K- and I-quants a second one made without the importance matrix."""

    paths: dict[str, Path] = field(default_factory=dict)
    written: dict[str, Written] = field(default_factory=dict)
    plain: dict[str, Path] = field(default_factory=dict)


def _write(job: Job) -> _Files:
    """Every configured type in `job.out`; f32, which is always proven, comes first, maybe in `job.scratch`."""
    model, types = job.inputs["model"], job.config.types
    general = {str(key): value for key, value in job.config.general.items()}
    exact = job.out / "model-f32.gguf" if "f32" in types else job.scratch / "conversion-f32.gguf"
    threads, verbose = job.execution.threads or default_threads(), job.execution.verbose
    files = _Files(paths={"f32": exact}, written={"f32": write_gguf(model, exact, "f32", general, threads)})
    importance: dict[str, Any] | None = None
    for kind in (kind for kind in types if kind != "f32"):
        files.paths[kind] = path = job.out / f"model-{kind}.gguf"
        if kind in WRITTEN_HERE:
            files.written[kind] = write_gguf(model, path, kind, general, threads)
            continue
        importance = _importance(job) if importance is None else importance
        files.written[kind] = quantise(exact, path, kind, importance, threads, verbose)
        if importance and kind not in NEED_IMPORTANCE:
            files.plain[kind] = job.scratch / f"plain-{kind}.gguf"
            quantise(exact, files.plain[kind], kind, {}, threads, verbose)
    return files


def prove(
    model: Path,
    paths: dict[str, Path],
    config: GgufConfig,
    corpus: Path | None,
    execution: LlamaCppExecution,
    device: str,
    plain: Mapping[str, Path] | None = None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The proof (parity.json) and speed figures of the GGUFs in `paths`; ParityError if one of them fails.

    Tokenizer, template and ends are compared through the first file; that all files hold the same metadata is checked
    of each. `plain`: files of some types
    that were made without the importance matrix; where one has the lower KL, it takes the place of that in `paths`.
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

    def load(path: Path) -> LlamaCpp:
        return LlamaCpp(path, context=context, threads=execution.threads, exact=True, verbose=execution.verbose)

    for kind, path in paths.items():
        weighed = _choose(kind, path, plain[kind], load, held_out, settings) if plain and kind in plain else {}
        start = time.perf_counter()
        with load(path) as llama:
            speed[f"export/{kind}/load_seconds"] = time.perf_counter() - start
            if "tokenizer" not in proof:
                proof["tokenizer"] = tokens.tokenizer_parity(
                    reference.tokenize, llama, vocabulary, documents[: settings.documents], settings
                )
                proof["template"] = parity.template_parity(reference, llama)
                proof["ends"] = tokens.end_parity(llama, reference.end_ids, vocabulary)
            found = parity.distribution_parity(llama, kind, held_out, settings)
            found["greedy"], speed[f"export/{kind}/tokens_per_second"] = parity.greedy_parity(
                reference, llama, kind, held_out, settings, context
            )
            proof["types"][kind] = found | weighed
        tokens.file_parity(path, shape, vocabulary)
    return proof, speed


def _choose(
    kind: str, path: Path, plain: Path, load: Callable[[Path], LlamaCpp], held_out: HeldOut, settings: Proof
) -> dict[str, float]:
    """Leave at `path` the one of two files that is nearer to the model; an importance matrix does not always help."""
    from export.parity import distribution_parity

    kls = []
    for candidate in (path, plain):
        with load(candidate) as llama:
            kls.append(distribution_parity(llama, kind, held_out, settings, gate=False)["kl"])
    if kls[1] < kls[0]:
        plain.replace(path)
    else:
        plain.unlink()
    return {"kl_with_importance": kls[0], "kl_without_importance": kls[1]}


def _importance(job: Job) -> dict[str, Any]:
    """The importance matrix of K- and I-quants; empty without a corpus, or with `importance_tokens` 0."""
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
