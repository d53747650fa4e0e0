"""Asks distilabel's and the engine's own classes about the arguments passed through to them, before anything runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError, create_model

from acorn.stage import Execution, Identity, Problem


def check(identity: Identity, execution: Execution) -> list[Problem]:
    """Problems in `llm` (the LLM class's fields, its generation arguments), `rank` and `dedup` (MinHashDedup's)."""
    from synth.config import ChatDataConfig, JudgeRank, PreferencePairsConfig

    assert isinstance(identity, ChatDataConfig | PreferencePairsConfig)
    problems = _check_llm(identity.llm) + _check_ray(execution)
    if isinstance(identity, ChatDataConfig):
        return problems + _check_dedup("dedup", identity.dedup)
    if identity.llm["type"] != "model":
        message = "pairs rank samples of the step's `model` input, so the type must be 'model'"
        problems.insert(0, Problem("llm.type", message))
    if isinstance(identity.rank, JudgeRank):
        problems += _check_llm(identity.rank.llm, "rank.llm")
    return problems


def check_making(identity: Identity, execution: Execution) -> list[Problem]:
    """The same of the stages that let an LLM write, with their filters."""
    from synth.language import KNOWN
    from synth.making_config import Made, MagpieConfig, pre_query

    assert isinstance(identity, Made)
    llm = pre_query(identity.llm) if isinstance(identity, MagpieConfig) else identity.llm
    filters = identity.filters
    problems = _check_llm(llm) + _check_ray(execution) + _check_dedup("filters.minhash", filters.minhash)
    if filters.tags is not None:
        problems += _check_llm(filters.tags.llm, "filters.tags.llm")
    if filters.language is not None:
        problems += _unknown("filters.language.keep", filters.language.keep, set(KNOWN), "synth.language")
    return problems


def _check_ray(execution: Execution) -> list[Problem]:
    from importlib.util import find_spec

    from synth.config import PairsExecution
    from synth.distilabel import ray_arguments

    assert isinstance(execution, PairsExecution)
    if execution.ray is None:
        return []
    if problems := _unknown("ray", execution.ray, ray_arguments(), "distilabel's RayPipeline"):
        return problems
    if find_spec("ray") is None:
        return [Problem("ray", "Ray is not installed: pip install 'distilabel[ray]', or leave `ray` out")]
    return []


def check_steps(identity: Identity, execution: Execution) -> list[Problem]:
    """Problems in `sampling`: the engine's `Sampling` knows its names and what they may be."""
    from dataclasses import fields

    from engine.interface import Sampling
    from engine.rules import check_sampling
    from synth.config import StepLabelsConfig

    assert isinstance(identity, StepLabelsConfig)
    known = {field.name for field in fields(Sampling)} - {"logprobs"}
    if problems := _unknown("sampling", identity.sampling, known, "the engine's Sampling"):
        return problems
    try:
        check_sampling(Sampling(**identity.sampling))
    except (ValueError, TypeError) as error:
        return [Problem("sampling", str(error))]
    if identity.num_generations > 1 and identity.sampling.get("temperature", 1.0) == 0:
        message = f"at 0 all {identity.num_generations} solutions of a problem are the same: raise it"
        return [Problem("sampling.temperature", message)]
    return []


def _check_llm(llm: dict[str, Any], field: str = "llm") -> list[Problem]:
    from synth.distilabel import LLM_CLASSES, SET_BY_ACORN

    kind = llm["type"]
    arguments = {key: value for key, value in llm.items() if key != "type"}
    if "api_key" in arguments:
        message = "a key in a recipe ends up in the manifest: set the environment variable OPENAI_API_KEY instead"
        return [Problem(f"{field}.api_key", message)]
    cls = LLM_CLASSES[kind]
    known = set(cls.model_fields) - SET_BY_ACORN[kind]
    problems = _unknown(field, arguments, known, f"distilabel's {_library_name(cls)}")
    given = arguments.get("generation_kwargs", {})
    # A pipeline step passes these two itself; `self` is nobody's to give.
    accepted = set(inspect.signature(_generate_method(cls)).parameters) - {"self", "input", "inputs", "num_generations"}
    problems += _unknown(f"{field}.generation_kwargs", given, accepted, f"{cls.__name__}.generate")
    return problems or _ask_class(cls, kind, arguments, field)


def _ask_class(cls: type[Any], kind: str, arguments: dict[str, Any], field: str) -> list[Problem]:
    """What the class says about the values; the fields that the stage fills in get stand-ins."""
    filled = {"teacher": {"problems": "train.jsonl"}, "openai": {}}.get(kind, {"model": "model"})
    # The class's fields alone: a distilabel LLM that failed to validate complains again when it is deleted.
    fields: dict[str, Any] = {name: (info.annotation, info) for name, info in cls.model_fields.items()}
    shape = create_model(cls.__name__, __config__=cls.model_config, **fields)
    try:
        shape(**{**filled, **arguments})
    except ValidationError as error:
        return [Problem(".".join([field, *map(str, one["loc"])]), one["msg"]) for one in error.errors()]
    return []


def _check_dedup(field: str, arguments: dict[str, Any] | None) -> list[Problem]:
    from distilabel.steps import MinHashDedup

    from synth.distilabel import near_duplicates

    if arguments is None:
        return []
    # The fields of the step itself, without those that every step has for a pipeline's sake.
    own = {name for name in MinHashDedup.__annotations__ if not name.startswith("_")} & set(MinHashDedup.model_fields)
    if problems := _unknown(field, arguments, own, "distilabel's MinHashDedup"):
        return problems
    if arguments.get("tokenizer", "words") == "words":
        return [Problem(f"{field}.tokenizer", "'words' needs a download of nltk's data: use `tokenizer: ngrams`")]
    try:
        near_duplicates(["a first text", "a second text"], arguments)
    except ValidationError as error:
        return [Problem(".".join([field, *map(str, one["loc"])]), one["msg"]) for one in error.errors()]
    except ValueError as error:
        return [Problem(field, str(error))]
    return []


def _generate_method(cls: type[Any]) -> Any:
    method = getattr(cls, "agenerate", None) or cls.generate
    # validate_call wraps without a signature of its own in some pydantic versions.
    return inspect.unwrap(getattr(method, "raw_function", method))


def _library_name(cls: type[Any]) -> str:
    return {"ModelLLM": "TransformersLLM", "ServerLLM": "OpenAILLM"}.get(cls.__name__, cls.__name__)


def _unknown(field: str, given: Iterable[str], known: set[str], owner: str) -> list[Problem]:
    problems = []
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known)) or 'none'}"
            problems.append(Problem(f"{field}.{name}", f"{owner} does not know {name!r}; {hint}"))
    return problems
