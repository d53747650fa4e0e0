"""`acorn scale`: a real miniseries at toy size, predicted before it is measured, and its page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from acorn.__main__ import main
from acorn.launch import StepFailed
from acorn.law import fit
from acorn.plan import plan
from acorn.recipe import load_recipe
from acorn.report.scaling import render
from acorn.run import StepEvent
from acorn.scale import Size, _figures, depths_of, make_series, run_series
from registry import Registry, RegistryError
from tests.acorn.test_recipe import GOOD, write
from tests.acorn.test_report import Page

BASE = """
  base:
    stage: pretrain
    inputs: {tokens: tokens, tokenizer: tokenizer}
    config:
      dial: {depth: 4, aspect_ratio: 8, head_dim: 8, tokens_per_parameter: 2}
      tokens: 4000
      global_batch_size: 4
      sequence_length: 32
    execution: {device: cpu}
"""
EVENTS = list[StepEvent]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Registry, EVENTS, list[dict[str, Any]]]:
    """The recipe, the registry, what happened in the first run, and what was reported when."""
    folder = tmp_path_factory.mktemp("scale")
    path, registry = write(folder, GOOD + BASE), Registry(folder / "home")
    events: EVENTS = []
    reports: list[dict[str, Any]] = []

    def report(figures: dict[str, Any]) -> None:
        trained = {event.step for event in events if event.kind == "built"}
        reports.append(json.loads(json.dumps(figures)) | {"trained": sorted(trained)})

    run_series(make_series(path, (), None, None, None), registry, events.append, report)
    return path, registry, events, reports


def test_the_next_size_is_predicted_before_it_is_trained(ran: Any) -> None:
    _, _, _, (before, after) = ran
    assert before["measured"] is None and before["next"]["depth"] == 4
    assert "base-d3" in before["trained"] and "base-d4" not in before["trained"]
    assert after["next"] == before["next"] and after["law"] == before["law"]
    assert after["measured"]["error"] == pytest.approx(after["next"]["loss"] / after["measured"]["loss"] - 1)


def test_the_law_is_fitted_to_the_smaller_sizes_alone(ran: Any) -> None:
    figures = ran[3][1]
    assert [one["depth"] for one in figures["sizes"]] == [1, 2, 3]
    law = fit([(float(one["flops"]), one["loss"]) for one in figures["sizes"]])
    assert law.as_dict() == pytest.approx(figures["law"])
    assert law(figures["next"]["compute"]) == pytest.approx(figures["next"]["loss"])
    assert figures["next"]["compute"] == figures["measured"]["flops"]  # estimated beforehand, then in the ledger


def test_the_sizes_are_ordinary_artifacts_and_a_second_run_trains_nothing(ran: Any) -> None:
    path, registry, _, reports = ran
    assert {"tiny/base-d1", "tiny/base-d4", "tiny/tokens"} <= set(registry.refs())
    again: EVENTS = []
    figures = run_series(make_series(path, (), "base", [1, 2, 3], 4), registry, again.append, lambda _: None)
    assert {event.kind for event in again} == {"hit"}
    assert figures["measured"]["key"] == reports[1]["measured"]["key"]


def test_a_size_is_the_recipes_own_step_at_that_depth(ran: Any) -> None:
    path, registry, _, reports = ran
    [row] = [row for row in plan(load_recipe(path), registry) if row.step == "base"]
    assert row.status == "hit" and row.key == reports[1]["measured"]["key"]


def test_a_series_on_tokens_that_the_registry_has_already(ran: Any, tmp_path: Path) -> None:
    _, registry, _, reports = ran
    by_name = BASE.replace("tokens: tokens,", 'tokens: "@tiny/tokens",').replace(": tokenizer}", ': "@tiny/tokenizer"}')
    series = make_series(write(tmp_path, f"name: tiny\nsteps:\n{by_name}"), (), None, None, None)
    events: EVENTS = []
    figures = run_series(series, registry, events.append, lambda _: None)
    assert [event.kind for event in events] == ["hit"] * 4
    assert figures["next"] == reports[1]["next"] and figures["measured"] == reports[1]["measured"]


def test_an_input_that_the_registry_has_not_is_missed_before_anything_runs(ran: Any, tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + BASE.replace(": tokenizer}", ': "@tiny/nowhere"}'))
    events: EVENTS = []
    with pytest.raises(RegistryError, match="tiny/nowhere"):
        run_series(make_series(path, (), None, None, None), ran[1], events.append, lambda _: None)
    assert events == []


def test_losses_that_no_law_fits_are_told_in_a_sentence(ran: Any) -> None:
    path, _, _, reports = ran
    sizes = [Size(**{name: one[name] for name in Size.__dataclass_fields__}) for one in reports[1]["sizes"]]
    series = make_series(path, (), None, None, None)
    with pytest.raises(StepFailed, match=r"no law fits the sizes base-d1, base-d2, base-d3: .* finite .* --depths"):
        _figures(series, [replace(sizes[0], loss=float("nan")), *sizes[1:]], 1e9)
    with pytest.raises(StepFailed, match="too few"):
        _figures(series, [replace(one, flops=10**9) for one in sizes], 1e10)


def test_the_page_shows_prediction_and_measurement_and_asks_for_nothing(ran: Any, tmp_path: Path) -> None:
    before, after = ran[3]
    page = tmp_path / "scaling.html"
    page.write_text(render(after))
    drawn = Page(page)
    assert f"{after['measured']['loss']:.4f}" in drawn.text and f"{after['next']['loss']:.4f}" in drawn.text
    assert "too high" in drawn.text or "too low" in drawn.text
    labels = " ".join(drawn.texts)
    assert all(word in labels for word in ("fitted", "predicted", "measured", "d1", "d4"))
    assert not any(attributes.get("src") or attributes.get("href", "#") != "#" for _, attributes in drawn.elements)
    page.write_text(render(before))
    assert "not trained yet" in Page(page).text


def test_the_command_writes_page_and_figures(ran: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, registry, _, reports = ran
    out = tmp_path / "law.html"
    assert main(["--home", str(registry.home), "scale", str(path), "--output", str(out)]) == 0
    assert json.loads((tmp_path / "law.json").read_text())["measured"]["loss"] == reports[1]["measured"]["loss"]
    assert "one size left out" in capsys.readouterr().out and out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ((None, [1, 2], 4), "too few: the law has 3 constants"),
        ((None, [1, 2, 3], 3), "--next 3 must be deeper"),
        ((None, None, 2), r"depths \[1\] are too few"),
        (("corpus", None, None), "no step 'corpus' with a dial; known: base"),
    ],
)
def test_a_choice_that_makes_no_series_is_refused(ran: Any, chosen: Any, words: str) -> None:
    with pytest.raises(StepFailed, match=words):
        make_series(ran[0], (), *chosen)


def test_depths_are_whole_numbers_and_a_recipe_without_a_dial_needs_next(tmp_path: Path) -> None:
    assert depths_of("2,3,5") == [2, 3, 5] and depths_of(None) is None
    with pytest.raises(StepFailed, match="whole numbers with commas"):
        depths_of("2-5")
    plain = write(tmp_path, GOOD + BASE.replace("dial: {depth: 4,", "dial: {flops: 1e11,"))
    with pytest.raises(StepFailed, match="give --next DEPTH"):
        make_series(plain, (), None, None, None)
