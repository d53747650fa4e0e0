"""Test items in everything a model was made from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acorn.recipe import Step
from acorn.resolve import Resolved, resolve
from acorn.run import describe_job
from acorn.worker import load_job
from eval.config import EvaluateConfig
from eval.contamination import texts
from eval.stage import EVALUATE, PASS
from eval.suite import read_problems, read_prose
from registry import Artifact, Registry, Spec
from tests.jobs import make_job, run_here


def test_every_text_of_a_row_is_read_and_its_names_are_not(tmp_path: Path) -> None:
    row = {
        "id": "no",
        "messages": [{"role": "no", "content": "Hello"}, {"role": "no", "content": "World"}],
        "source": "no",
        "chosen": [{"role": "no", "content": "Yes"}],
        "level": 3,
    }
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    (tmp_path / "rejected.jsonl").write_text(json.dumps({"text": "no"}) + "\n")
    assert list(texts(tmp_path)) == ["Hello World Yes"]


class Chain:
    """A registry in which a model was made: text -> (filter) -> corpus -> tokens -> base -> (chat) -> sft."""

    def __init__(self, home: Path, model: Path, leaked: list[str]) -> None:
        self.registry = Registry(home)
        self.model = model
        self.raw = self.make("text", "corpus", {}, {"train/0.jsonl": [{"text": text} for text in leaked]})
        self.clean = self.make("filter", "corpus", {"corpus": self.raw}, {"train/0.jsonl": [{"text": "clean text"}]})
        self.tokens = self.make("tokens", "tokens", {"corpus": self.clean}, {"train.bin": []})
        self.base = self.make("pretrain", "model", {"tokens": self.tokens}, {"which.jsonl": [{"base": 1}]})

    def make(
        self, stage: str, kind: str, inputs: Mapping[str, Artifact], files: Mapping[str, list[Any]], **config: Any
    ) -> Artifact:
        with self.registry.build(Spec(stage, 1, kind, config, inputs=inputs)) as build:
            if build.artifact is None:
                for name, rows in files.items():
                    (build.out / name).parent.mkdir(parents=True, exist_ok=True)
                    (build.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
                if kind == "model":
                    for file in self.model.iterdir():
                        (build.out / file.name).write_bytes(file.read_bytes())
                build.publish()
            assert build.artifact is not None
            return build.artifact

    def sft(self, rows: list[Any]) -> Artifact:
        chat = self.make("chat_data", "chat", {"corpus": self.clean}, {"train.jsonl": rows}, rows=len(rows))
        return self.make("sft", "model", {"model": self.base, "chat": chat}, {"which.jsonl": [{"sft": len(rows)}]})

    def resolved(self, models: Mapping[str, Artifact], **config: Any) -> Resolved:
        identity = EvaluateConfig.model_validate(config)
        step = Step("eval", EVALUATE, dict.fromkeys(models, "?"), identity, EVALUATE.execution())
        return resolve(step, dict(models), self.registry)


@pytest.fixture(scope="module")
def leaked(tiny_corpus: Path) -> list[str]:
    """Texts of two test problems and one validation document, each inside other words."""
    problems = read_problems(tiny_corpus, EvaluateConfig(problems_per_level=2))
    document = read_prose(tiny_corpus, EvaluateConfig(prose_documents=4))[0]
    found = [f"{one['question']} {one['solution']}" for one in problems[:2]] + [document["text"]]
    return [f"Page 1. {text.upper()} The end." for text in found]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, leaked: list[str]) -> Chain:
    return Chain(tmp_path_factory.mktemp("chain") / "home", tiny_model, leaked)


def test_ancestors_are_found_through_the_whole_lineage_and_enter_the_key(chain: Chain, leaked: list[str]) -> None:
    models = {"base": chain.base, "sft": chain.sft([{"messages": [{"role": "user", "content": leaked[0]}]}])}
    found = chain.resolved(models)
    told = {one.stage: (one.roles, one.made_into) for one in found.ancestors}
    assert told == {
        "text": (("base", "sft"), ("corpus",)),
        "filter": (("base", "sft"), ("chat", "tokens")),
        "chat_data": (("sft",), ("model",)),
    }
    assert all(one.path is not None and one.path.is_dir() for one in found.ancestors)
    assert chain.resolved(models, contamination=None).ancestors == ()
    other = chain.resolved({**models, "sft": dataclasses.replace(models["sft"], manifest=chain.base.manifest)})
    assert other.key != found.key, "the same weights from other data would be a hit"


def test_an_ancestor_whose_data_is_elsewhere_is_told_and_not_searched(chain: Chain, tmp_path: Path) -> None:
    chain.registry.tag("base", chain.base.key)
    chain.registry.push("base", str(tmp_path / "remote"))
    far = Registry(tmp_path / "far")
    base = far.pull("base", str(tmp_path / "remote"))
    step = chain.resolved({"base": chain.base}).step
    found = resolve(step, {"base": base}, far)
    assert [one.path for one in found.ancestors] == [None, None]
    assert set(found.spec.inputs) == {"base"}


def test_each_eval_reports_the_overlap_with_the_ancestry_and_the_score_without_it(
    chain: Chain, leaked: list[str], tiny_corpus: Path, tmp_path: Path
) -> None:
    rows = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "ok"}]} for text in leaked
    ]
    config = {"problems_per_level": 2, "prose_documents": 4, "max_new_tokens": 4, "dtype": "float32"}
    resolved = chain.resolved({"base": chain.base, "sft": chain.sft(rows)}, **config)
    job = make_job(EVALUATE, tmp_path, config, inputs={"corpus": tiny_corpus})
    description = describe_job(type("R", (), {"name": "r"}), resolved, job.out, job.scratch, "g")  # type: ignore[arg-type]
    sent = load_job(json.loads(json.dumps(description)))
    assert set(sent.inputs) == {"base", "sft"}
    job = dataclasses.replace(sent, inputs={"corpus": tiny_corpus, **sent.inputs})
    metrics = run_here(EVALUATE, job)
    told = json.loads((job.out / "contamination.json").read_text())
    by_stage = {one["stage"]: one for one in told["ancestors"]}
    assert not by_stage["text"]["trained_on"] and by_stage["chat_data"]["trained_on"]
    for stage in ("text", "chat_data"):
        assert (
            by_stage[stage]["overlapping"]["acorn:problems"] >= 2 and by_stage[stage]["overlapping"]["acorn:prose"] >= 1
        )
    assert by_stage["filter"]["overlapping"] == {"acorn:problems": 0, "acorn:prose": 0}
    assert told["models"]["base"]["acorn:problems"]["overlapping"] == 0, "what was filtered away was not learned"
    prose = told["models"]["sft"]["acorn:prose"]
    assert 1 <= prose["overlapping"] < prose["items"] == 4
    scores = prose["metrics"]["bits_per_byte"]
    items = [json.loads(line) for line in (job.out / "contamination.jsonl").read_text().splitlines()]
    dirty = {one["id"] for one in items if by_stage["chat_data"]["digest"] in one["found"]}
    samples = map(json.loads, (job.out / "samples" / "sft.jsonl").read_text().splitlines())
    clean = [one for one in samples if one["task"] == "acorn:prose" and one["id"] not in dirty]
    bits = -sum(one["logprob"] for one in clean) / np.log(2) / sum(one["bytes"] for one in clean)
    assert scores["without"] == pytest.approx(bits) != scores["all"]
    assert metrics["contamination/sft/acorn:prose/bits_per_byte_without"] == scores["without"]
    assert len(items) == 14 and all(one["n_grams"] > 0 for one in items)


def test_a_passed_gate_moves_its_tags_and_nobody_else_does(chain: Chain) -> None:
    from registry import RegistryError

    sft = chain.sft([])
    chain.registry.tag("release", chain.base.key)
    chain.registry.tag("release", sft.key, gate="r/gate")
    with pytest.raises(RegistryError, match="'release' is moved by the gate r/gate alone"):
        chain.registry.tag("release", chain.base.key)
    chain.registry.tag("release", sft.key)  # where it stands anyway
    chain.registry.tag("release", chain.base.key, gate="r/gate")
    assert chain.registry.get("release").key == chain.base.key
    chain.registry.untag("release")
    chain.registry.tag("release", sft.key)
    assert PASS.execution.model_validate({"tags": {"release": "model"}}).tags == {"release": "model"}  # type: ignore[attr-defined]
