"""Two evaluations side by side: flips, paired tests, gates, and a search as an evaluated model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acorn.problems import WordProblem
from acorn.recipe import RecipeError, load_recipe
from eval.flips import data
from eval.gate import GateFailed
from eval.searched import searched_models
from eval.stage import EVALUATE, PASS
from eval.statistics import mcnemar, paired
from tests.eval.worlds import TASK, evaluation, search
from tests.jobs import make_job, run_here

BEFORE = [True] * 60 + [False] * 40
NOW = [False] * 12 + [True] * 48 + [True] * 4 + [False] * 36
"""Against `BEFORE`: 12 lost, 4 won."""


def test_mcnemars_p_is_the_exact_binomial_one() -> None:
    from scipy.stats import binomtest

    for lost, won in ((0, 0), (1, 0), (12, 4), (5, 5), (0, 9), (300, 250)):
        expected = binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
        assert mcnemar(lost, won) == pytest.approx(expected)


def test_the_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        hard = random.random(80)
        left, right = (random.random(80) < 0.3 + 0.5 * hard), (random.random(80) < 0.4 + 0.5 * hard)
        found = paired([(float(x), 1.0) for x in left], [(float(x), 1.0) for x in right], seed)
        covered += found.low <= 0.1 <= found.high
    assert 180 <= covered <= 198


def test_a_diff_names_the_samples_that_flipped(tmp_path: Path) -> None:
    left = evaluation(tmp_path / "left", {"dpo": BEFORE, "old": BEFORE}, {"dpo": [100.0, 120.0, 90.0]})
    right = evaluation(tmp_path / "right", {"dpo": NOW}, {"dpo": [90.0, 110.0, 80.0]})
    found = data(left, right)
    assert list(found) == ["dpo"]
    flips = found["dpo"][TASK]["exact_match"]
    assert flips["lost"] == [f"p{n}" for n in range(12)] and flips["won"] == [f"p{n}" for n in range(60, 64)]
    assert flips["difference"] == -0.08 and flips["low"] < -0.08 < flips["high"] <= 0.0
    assert flips["mcnemar_p"] == pytest.approx(0.0768, abs=1e-4)
    bits = found["dpo"]["acorn:prose"]["bits_per_byte"]
    assert bits["difference"] == pytest.approx(-0.1) and "lost" not in bits


def test_a_diff_pairs_two_models_of_other_names(tmp_path: Path) -> None:
    found = data(evaluation(tmp_path / "a", {"v1": BEFORE}), evaluation(tmp_path / "b", {"v2": NOW}))
    assert found["v1 → v2"][TASK]["exact_match"]["n"] == 100


def gate(folder: Path, demands: list[dict[str, Any]], previous: bool = True) -> dict[str, float]:
    inputs = {"evaluation": folder / "now", "model": folder, **({"previous": folder / "before"} if previous else {})}
    job = make_job(PASS, folder / "job", {"demands": demands}, inputs=inputs)
    object.__setattr__(job, "digests", {"model": "digest-of-dpo"})
    try:
        return run_here(PASS, job)
    finally:
        left = [path.name for path in job.out.iterdir()]
        assert left == [] or json.loads((job.out / "passed.json").read_text()) == {"model": "digest-of-dpo"}


@pytest.fixture
def releases(tmp_path: Path) -> Path:
    evaluation(tmp_path / "before", {"dpo": BEFORE}, {"dpo": [100.0, 120.0, 90.0]})
    evaluation(tmp_path / "now", {"sft": BEFORE, "dpo": NOW}, {"dpo": [101.0, 121.0, 91.0]})
    return tmp_path


def demand(**more: Any) -> dict[str, Any]:
    return {"task": TASK, "metric": "exact_match", **more}


def test_a_failed_gate_says_what_fell_by_how_much_and_publishes_nothing(releases: Path) -> None:
    bits = {"task": "acorn:prose", "metric": "bits_per_byte"}
    with pytest.raises(GateFailed) as failed:
        gate(releases, [demand(at_least=0.55), demand(tolerance=0.05), {**bits, "at_most": 1.0, "tolerance": 0.001}])
    lines = str(failed.value).splitlines()
    assert lines[0] == "gate 'gate': 'dpo' does not pass."
    assert lines[1].strip() == "acorn:problems exact_match is 0.52 [0.5, 0.54], demanded is at least 0.55"
    assert lines[2].strip().startswith("acorn:problems exact_match fell by 0.08 [")
    assert "from 0.6 to 0.52 (paired over 100 items), allowed is 0.05" in lines[2]
    assert "bits_per_byte is 1.043" in lines[3] and "demanded is at most 1" in lines[3]
    assert "bits_per_byte fell by 0.01 [" in lines[4]


def test_a_passed_gate_leaves_the_model_that_passed(releases: Path) -> None:
    found = gate(releases, [demand(at_least=0.5), demand(tolerance=0.1)])
    assert found == {f"gate/{TASK}/exact_match": 0.52, f"gate/{TASK}/exact_match/difference": -0.08}
    verdicts = json.loads((releases / "job" / "out" / "logs" / "verdicts.json").read_text())["verdicts"]
    assert verdicts[1]["against"]["low"] < -0.1  # a gate that wants to be sure lets it not pass


def test_a_gate_may_ask_to_be_sure(releases: Path) -> None:
    with pytest.raises(GateFailed, match=r"demanded is at least 0\.51 at the worse end of the interval"):
        gate(releases, [demand(at_least=0.51, sure=True)])
    with pytest.raises(GateFailed, match=r"fell by 0\.08"):
        gate(releases, [demand(tolerance=0.1, sure=True)])


def test_a_score_that_is_no_number_passes_no_gate(tmp_path: Path) -> None:
    evaluation(tmp_path / "before", {"dpo": BEFORE}, {"dpo": [100.0, 120.0]})
    evaluation(tmp_path / "now", {"dpo": NOW}, {"dpo": [math.nan, 121.0]})
    bits = {"task": "acorn:prose", "metric": "bits_per_byte"}
    for one in ({"at_least": 0.0}, {"at_most": 9.0}, {"at_most": 9.0, "sure": True}, {"tolerance": 1.0}):
        with pytest.raises(GateFailed, match="nan"):
            gate(tmp_path, [bits | one])


def test_a_gate_cannot_be_sure_of_a_metric_without_an_interval(releases: Path) -> None:
    file = releases / "now" / "results.json"
    found = json.loads(file.read_text())
    found["models"]["dpo"][TASK]["exact_match"] |= {"low": None, "high": None}
    file.write_text(json.dumps(found))
    assert gate(releases, [demand(at_least=0.5)])
    with pytest.raises(ValueError, match="exact_match has no interval"):
        gate(releases, [demand(at_least=0.5, sure=True)])


def test_the_first_release_has_nothing_to_be_held_against(releases: Path) -> None:
    assert gate(releases, [demand(at_least=0.5, tolerance=0.0)], previous=False) == {f"gate/{TASK}/exact_match": 0.52}


def test_a_gate_that_asks_for_what_is_not_there_names_the_nearest(releases: Path) -> None:
    with pytest.raises(ValueError, match="no metric 'exact_mach': did you mean 'exact_match'"):
        gate(releases, [demand(at_least=0.5) | {"metric": "exact_mach"}])


RECIPE = """
name: r
steps:
  base: {stage: hub_model, config: {path: "x/y"}}
  other: {stage: hub_model, config: {path: "x/z"}}
  eval: {stage: evaluate, inputs: {base: base}, config: {tasks: [gsm8k|5]}}
  good:
    stage: gate
    inputs: {evaluation: eval, model: base, previous: "@released?"}
    config: {demands: [{task: "gsm8k|5", metric: acc, at_least: 0.1, tolerance: 0.1}]}
    execution: {tags: {release: model}}
  gguf: {stage: gguf, inputs: {model: base, gate: good}}
"""


def test_a_recipe_waits_for_the_gate_of_its_own_model(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE)
    recipe = load_recipe(path)
    assert "gguf" in recipe.downstream("eval")
    path.write_text(RECIPE.replace("{model: base, gate", "{model: other, gate"))
    with pytest.raises(RecipeError, match="gate 'good' judges 'base', but this step takes other"):
        load_recipe(path)
    path.write_text(RECIPE.replace(', previous: "@released?"', ""))
    with pytest.raises(RecipeError, match="tolerance: is against the previous release: add the input previous"):
        load_recipe(path)
    path.write_text(RECIPE.replace("evaluation: eval", 'evaluation: "@some?"'))
    with pytest.raises(RecipeError, match="cannot do without 'evaluation'"):
        load_recipe(path)


def problem(identity: str, answer: str) -> WordProblem:
    return WordProblem(id=identity, question="?", solution=f"#### {answer}", answer=answer, level=1)


def test_a_search_is_an_evaluated_model_with_its_tokens_beside_its_score(tmp_path: Path) -> None:
    drawn = {
        "a": [("2", 0.1), ("1", 0.9), ("2", 0.2), ("1.0", 0.3)],
        "b": [("5", 0.5), ("6", 0.4), ("6", 0.3), ("6", 0.1)],
    }
    folder = search(tmp_path / "search", drawn, {"a": "1", "b": "6"})
    problems = [problem("a", "1"), problem("b", "6"), problem("not searched", "7")]
    found = searched_models("think", folder, problems, 0)
    assert list(found) == ["think/greedy@1", "think/majority@4", "think/samples"]
    majority = found["think/majority@4"].metrics
    assert (majority["exact_match"].value, majority["tokens"].value, majority["exact_match"].n) == (0.5, 60.0, 2)
    assert not majority["tokens"].higher_is_better
    assert found["think/greedy@1"].metrics["tokens"].value == 10.0
    votes = {name: metric.value for name, metric in found["think/samples"].metrics.items()}
    assert votes["pass@1"] == pytest.approx((1 / 4 + 3 / 4) / 2)  # "1.0" was marked wrong, as the world has it
    assert votes["pass@4"] == 1.0 and votes["pass@2"] == pytest.approx((1 / 2 + 1.0) / 2)
    assert votes["maj@4"] == 0.5  # of `a` two say 2, and two say 1 in two spellings: the first wins
    assert votes["weighted@4"] == 0.5 + 0.5 * (0.5 < 0.8) and votes["weighted@1"] == 0.0
    assert found["think/samples"].metrics["pass@1"].low is not None
    with pytest.raises(ValueError, match="asked none of this step's problems"):
        searched_models("think", folder, [problem("c", "1")], 0)


def test_a_search_stands_beside_the_models_in_one_evaluation(tiny_corpus: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tiny_corpus / "problems" / "test.jsonl").read_text().splitlines()]
    gold = {row["id"]: row["answer"] for row in rows}
    folder = search(tmp_path / "search", {name: [(answer, 1.0), ("0", 0.1)] for name, answer in gold.items()}, gold)
    job = make_job(EVALUATE, tmp_path / "job", {}, inputs={"corpus": tiny_corpus, "think": folder})
    metrics = run_here(EVALUATE, job)
    assert metrics[f"eval/think/majority@2/{TASK}/exact_match"] == 1.0
    assert (job.out / "samples" / "think" / "majority@2.jsonl").exists()
    assert data(job.out, job.out)["think/majority@2"][TASK]["exact_match"]["difference"] == 0.0
