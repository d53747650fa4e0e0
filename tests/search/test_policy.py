"""The compute-optimal policy on searches whose figures are known."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from search.policy import PolicyConfig
from search.records import write
from search.stage import SEARCH_POLICY
from tests.jobs import make_job, run_here

PROTOCOL = {
    "format": "chat",
    "system_prompt": None,
    "sampling": {"temperature": 1.0},
    "step_delimiter": "\n\n",
    "max_tokens": 100,
    "max_step_tokens": None,
    "aggregation": "last",
    "methods": [
        {"name": "greedy", "label": None},
        {"name": "majority", "label": None},
        {"name": "beam", "label": "tree"},
    ],
}


def searched(folder: Path, split: str, problems: int = 40, scored: bool = True, **protocol: Any) -> Path:
    """Half of the problems are easy: the samples agree and score well, greedy is right. On the others only the tree
    is right, at 2,000 tokens. Samples take 25 tokens each."""
    folder.mkdir(parents=True)
    completions, outcomes = [], []
    for index in range(problems):
        easy = index % 2 == 0
        where = {"seed": 0, "id": f"{split}-{index}", "level": 1 if easy else 5}
        samples = [
            {
                "text": "",
                "answer": "1" if easy else str(place),
                "correct": easy,
                "finished": True,
                "score": 0.9 if easy else 0.2 + place / 100,
                "step_scores": [0.5] * scored,
                "generated": 25,
                "scored": 25,
                "node": 0,
            }
            for place in range(4)
        ]
        completions.append({"run": "samples", "n": 4, **where, "candidates": samples})
        for method, n, right, generated, read in (
            ("greedy", 1, easy, 25, 0),
            ("majority", 4, easy, 100, 0),
            ("tree", 8, True, 1000, 1000),
        ):
            row = {"method": method, "n": n, **where, "answer": "1", "correct": right}
            outcomes.append(row | {"generated": generated, "scored": read})
    write(folder / "completions.jsonl", completions)
    write(folder / "outcomes.jsonl", outcomes)
    (folder / "results.json").write_text(json.dumps({"protocol": PROTOCOL | protocol}))
    return folder


def fitted(folder: Path, fit: Path, held_out: Path, **config: Any) -> tuple[dict[str, float], Any, list[Any]]:
    job = make_job(SEARCH_POLICY, folder, {"probe": 2, **config}, inputs={"fit": fit, "apply": held_out})
    metrics = run_here(SEARCH_POLICY, job)
    policy = json.loads((job.out / "policy.json").read_text())
    return metrics, policy, json.loads((job.out / "curve.json").read_text())["curve"]


def test_hard_problems_get_the_tokens(tmp_path: Path) -> None:
    fit, held_out = searched(tmp_path / "fit", "train"), searched(tmp_path / "apply", "test")
    metrics, policy, curve = fitted(tmp_path / "job", fit, held_out, budgets=[50, 1300, 3000], smoothing=1)
    small, middle, large = curve
    # 100 tokens of probe, 25 or 2,000 more, half of each.
    assert middle["policy"]["mean"] == 1.0
    assert middle["policy"]["tokens"] == 100 + (25 + 2000) / 2
    assert (middle["single"]["method"], middle["single"]["mean"]) == ("greedy", 0.5)
    assert middle["gain"] == {"mean": 0.5, "low": middle["gain"]["low"], "high": middle["gain"]["high"], "problems": 40}
    assert middle["gain"]["low"] > 0.3
    assert (large["single"]["method"], large["single"]["mean"], large["gain"]["mean"]) == ("tree", 1.0, 0.0)
    assert (small["policy"]["tokens"], small["gain"]["mean"]) == (25, 0.0), "a probe that nothing follows is not paid"
    assert large["policy"]["tokens"] == 2000, "nor one that changes nothing"
    assert [row["probe"] for row in policy["budgets"]] == [False, True, False]
    assert metrics["search_policy/1300/accuracy"] == 1.0
    assert policy["weights"]["mean_score"] > 0 > policy["weights"]["vote_entropy"]
    assert policy["fit"][0]["searches"] == 20


def test_a_probe_that_only_seems_to_help_is_not_paid(tmp_path: Path) -> None:
    """The options are right by chance, whatever the samples look like: bins that differ on `fit` differ by chance."""
    folders = [searched(tmp_path / split, split, problems=30) for split in ("train", "test")]
    for folder in folders:
        rows = [json.loads(line) for line in (folder / "outcomes.jsonl").read_text().splitlines()]
        chance = random.Random(f"{folder.name}1")
        (folder / "outcomes.jsonl").unlink()
        write(folder / "outcomes.jsonl", [row | {"correct": chance.random() < 0.5} for row in rows])
    _, policy, curve = fitted(tmp_path / "job", *folders, budgets=[1300, 3000], smoothing=0)
    assert any(len({option["method"] for option in row["bins"]}) > 1 for row in policy["budgets"])
    assert [row["probe"] for row in policy["budgets"]] == [False, False]
    assert [row["gain"]["mean"] for row in curve] == [0.0, 0.0]


def test_a_policy_from_a_handful_of_problems_is_refused(tmp_path: Path) -> None:
    fit, held_out = searched(tmp_path / "fit", "train", problems=4), searched(tmp_path / "apply", "test")
    with pytest.raises(ValueError, match="fit has 4 problems, a policy needs 5"):
        fitted(tmp_path / "job", fit, held_out)


def test_the_same_searches_give_the_same_policy(tmp_path: Path) -> None:
    fit, held_out = searched(tmp_path / "fit", "train"), searched(tmp_path / "apply", "test")
    first, second = (fitted(tmp_path / name, fit, held_out) for name in ("first", "second"))
    assert first == second
    assert len(first[2]) >= 5


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"split": "train"}, "share 40 problems"),
        ({"split": "test", "max_tokens": 50}, "max_tokens=100, apply with 50"),
        ({"split": "test", "scored": False}, "have no scores"),
    ],
)
def test_searches_that_do_not_fit_together_are_refused(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    fit, held_out = searched(tmp_path / "fit", "train"), searched(tmp_path / "apply", **other)
    with pytest.raises(ValueError, match=message):
        fitted(tmp_path / "job", fit, held_out)


def test_a_probe_larger_than_the_sampling_is_refused(tmp_path: Path) -> None:
    fit, held_out = searched(tmp_path / "fit", "train"), searched(tmp_path / "apply", "test")
    with pytest.raises(ValueError, match="has 4 samples a problem, a probe of 5 needs more"):
        fitted(tmp_path / "job", fit, held_out, probe=5)


def test_bins_must_rise() -> None:
    with pytest.raises(ValueError, match="must rise"):
        PolicyConfig(bins=(0.5, 0.2))
