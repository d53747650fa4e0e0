"""Compute-optimal search: which method, at which size, for a problem that looks this hard, at this budget.

Snell et al. 2024 (arXiv:2408.03314, section 3) choose the strategy by difficulty. Here difficulty is read off a probe
that never sees the answer: the scores and the disagreement of the first few samples. It is predicted as the share of
right samples and cut into bins at absolute borders. For each bin, accuracy and tokens of every method and n come from
the `fit` artifact; for each budget the bins share it so that the expected accuracy is largest (one price per token for
all bins). A probe costs tokens, too: where the shared budget is not clearly better than the best single method on held-
out fifths of `fit`, the policy is that method without a probe. What is shown is how that does on the `apply` artifact's
problems, with the probe's tokens counted, beside the single method that was best on `fit` at that budget, and the one
that turns out best in hindsight.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from acorn.stage import Job
from search.config import PolicyConfig
from search.intervals import interval
from search.measured import FEATURES, Array, Measured, load, refuse_misfit

_PRICES = np.concatenate([[0.0], np.geomspace(1e-8, 1.0, 400)])
"""Accuracy per token that a bin may be asked to pay."""
_FOLDS = 5


@dataclass(frozen=True)
class Choice:
    """What to do at one budget: an index into the options for each bin, and the best single option."""

    budget: int
    bins: tuple[int, ...]
    single: int
    affordable: bool
    """Whether `bins`, with the probe, keep to the budget on average."""
    gain: float = 0.0
    """What `bins` add to the accuracy of `single` on problems that neither was fitted on."""
    error: float = 0.0
    """Standard error of `gain`."""

    @property
    def probe(self) -> bool:
        """Whether to probe and go by `bins`; else `single` for every problem, without a probe.

        The gain must be above its standard error (Breiman et al. 1984, the one-standard-error rule): of choices that
        differ by chance alone half have a gain above 0, and one in six passes this.
        """
        return self.affordable and self.gain > self.error


@dataclass(frozen=True)
class Policy:
    """Fitted on problems whose answers are known, applied to any."""

    probe: int
    weights: tuple[float, ...]
    """Of `FEATURES`, for the log-odds of a right sample."""
    borders: tuple[float, ...]
    options: tuple[tuple[str, int], ...]
    choices: tuple[Choice, ...]

    def bins(self, features: Array) -> NDArray[np.int64]:
        """Bin of each row of `features` `[problems, FEATURES]`; 0 is the hardest."""
        return np.searchsorted(np.array(self.borders), _sigmoid(features @ np.array(self.weights)), side="right")

    def picks(self, choice: Choice, features: Array) -> NDArray[np.int64]:
        """Option of each row of `features` if it is probed."""
        return np.array(choice.bins)[self.bins(features)]


def run(job: Job) -> dict[str, float]:
    """Stage `search_policy`. Raises ValueError for two searches that do not fit together or have no scored samples."""
    config: PolicyConfig = job.config
    fit, held_out = (load(job.inputs[role], config.probe) for role in ("fit", "apply"))
    refuse_misfit(fit, held_out)
    policy = fit_policy(fit, config)
    curve = apply_policy(policy, fit, held_out)
    _write(job.out / "policy.json", _as_json(policy, fit))
    _write(job.out / "curve.json", {"curve": curve, "problems": len(set(held_out.problems))})
    metrics = {
        f"search_policy/{row['budget']}/{name}": row[group][figure]
        for row in curve
        for name, group, figure in (
            ("accuracy", "policy", "mean"),
            ("tokens", "policy", "tokens"),
            ("single_accuracy", "single", "mean"),
            ("gain", "gain", "mean"),
        )
    }
    with job.track() as tracker:
        tracker.log(metrics)
    return metrics


def fit_policy(data: Measured, config: PolicyConfig) -> Policy:
    """The best use of each budget, and whether a probe pays there. Raises ValueError for too few problems."""
    budgets = config.budgets or _budgets(data)
    policy = _fit(data, config, budgets)
    choices = []
    for choice, gains in zip(policy.choices, _gains(data, config, budgets), strict=True):
        by_problem = data.by_problem(gains)
        error = float(np.std(by_problem, ddof=1)) / math.sqrt(len(by_problem))
        choices.append(replace(choice, gain=float(np.mean(by_problem)), error=error))
    return replace(policy, choices=tuple(choices))


def _fit(data: Measured, config: PolicyConfig, budgets: tuple[int, ...]) -> Policy:
    """Difficulty by logistic regression on the probe, then the best use of each budget with a probe."""
    policy = Policy(config.probe, _regress(data.features, data.rate), config.bins, data.options, ())
    bins = policy.bins(data.features)
    accuracy, cost, share = _tables(data, bins, len(config.bins) + 1, config.smoothing)
    choices = []
    for budget in budgets:
        picks, affordable = _allocate(accuracy, cost, share, budget)
        choices.append(Choice(budget, picks, _single(data, budget), affordable))
    return replace(policy, choices=tuple(choices))


def _gains(data: Measured, config: PolicyConfig, budgets: tuple[int, ...]) -> Array:
    """What probing adds over the single option, each fitted on the other folds: `[budgets, rows]`, -1, 0 or 1.

    On the problems that it was fitted on, a choice of one option for each bin can only look better than one for all.
    """
    names = list(dict.fromkeys(data.problems))
    if len(names) < _FOLDS:
        raise ValueError(f"fit has {len(names)} problems, a policy needs {_FOLDS} or more: search more of them")
    fold = np.array([names.index(problem) % _FOLDS for problem in data.problems])
    gains = np.zeros((len(budgets), len(fold)))
    for held in range(_FOLDS):
        policy, rest = _fit(data.rows(fold != held), config, budgets), data.rows(fold == held)
        every = np.arange(len(rest.problems))
        for place, choice in enumerate(policy.choices):
            picks = policy.picks(choice, rest.features)
            gains[place, fold == held] = rest.correct[every, picks] - rest.correct[:, choice.single]
    return gains


def _tables(data: Measured, bins: NDArray[np.int64], count: int, smoothing: float) -> tuple[Array, Array, Array]:
    """Accuracy and tokens (probe included) of each option in each bin `[bins, options]`, and each bin's share."""
    accuracy, cost, share = [], [], []
    for place in range(count):
        chosen = bins == place
        weight = chosen.sum() + smoothing
        # With no smoothing and nobody in the bin there is only the mean over all to go by.
        rows = [
            (table[chosen].sum(0) + smoothing * table.mean(0)) / weight if weight else table.mean(0)
            for table in (data.correct, data.probed)
        ]
        accuracy.append(rows[0])
        cost.append(rows[1])
        share.append(chosen.mean())
    return np.array(accuracy), np.array(cost), np.array(share)


def _allocate(accuracy: Array, cost: Array, share: Array, budget: float) -> tuple[tuple[int, ...], bool]:
    """Option of each bin with the largest expected accuracy whose expected cost is within `budget`, and if any is.

    At a price per token each bin takes its best accuracy - price * tokens; the best affordable price is taken. Where
    none is, each bin takes its cheapest option.
    """
    best = np.argmin(cost, axis=1)
    reached = -1.0
    rows = np.arange(len(share))
    for price in _PRICES:
        picks = np.argmax(accuracy - price * cost, axis=1)
        expected = float(share @ accuracy[rows, picks])
        if share @ cost[rows, picks] <= budget and expected > reached:
            best, reached = picks, expected
    return tuple(int(pick) for pick in best), reached >= 0


def _single(data: Measured, budget: float) -> int:
    """The most accurate option on `data` with mean cost (no probe) within `budget`; else the cheapest."""
    cost, accuracy = data.tokens.mean(0), data.correct.mean(0)
    affordable = [option for option in range(len(cost)) if cost[option] <= budget]
    if not affordable:
        return int(np.argmin(cost))
    return max(affordable, key=lambda option: (accuracy[option], -cost[option]))


def _budgets(data: Measured) -> tuple[int, ...]:
    means = np.concatenate([data.tokens.mean(0), data.probed.mean(0)])
    return tuple(sorted({int(np.ceil(step)) for step in np.geomspace(means.min(), means.max(), 10)}))


def apply_policy(policy: Policy, fit: Measured, data: Measured) -> list[dict[str, Any]]:
    """Accuracy and tokens on `data` at each budget: the policy, the best single option of `fit`, that of hindsight."""
    rows = np.arange(len(data.problems))
    curve = []
    for choice in policy.choices:
        if choice.probe:
            picks = policy.picks(choice, data.features)
            right, tokens = data.correct[rows, picks], data.probed[rows, picks]
        else:
            right, tokens = data.correct[:, choice.single], data.tokens[:, choice.single]
        hindsight = _single(data, choice.budget)
        curve.append(
            {
                "budget": choice.budget,
                "policy": _figures(data, right, tokens),
                "single": _option_figures(data, choice.single),
                "hindsight": _option_figures(data, hindsight),
                "gain": asdict(interval(data.by_problem(right - data.correct[:, choice.single]))),
            }
        )
    return curve


def _option_figures(data: Measured, option: int) -> dict[str, Any]:
    method, n = data.options[option]
    return {"method": method, "n": n, **_figures(data, data.correct[:, option], data.tokens[:, option])}


def _figures(data: Measured, right: Array, tokens: Array) -> dict[str, Any]:
    return {**asdict(interval(data.by_problem(right))), "tokens": round(float(tokens.mean()), 3)}


def _regress(features: Array, rate: Array, ridge: float = 1.0, rounds: int = 50) -> tuple[float, ...]:
    """Weights of a logistic regression on shares, by Newton's method, with a ridge on all but the constant."""
    weights = np.zeros(features.shape[1])
    penalty = np.diag([0.0 if name == "constant" else ridge for name in FEATURES]) + 1e-6 * np.eye(len(weights))
    for _ in range(rounds):
        predicted = _sigmoid(features @ weights)
        slope = features.T @ (predicted - rate) + penalty @ weights
        curvature = (features * (predicted * (1 - predicted))[:, None]).T @ features + penalty
        weights = weights - np.linalg.solve(curvature, slope)
    return tuple(round(float(weight), 6) for weight in weights)


def _sigmoid(logits: Array) -> Array:
    return 1 / (1 + np.exp(-np.clip(logits, -30, 30)))


def _as_json(policy: Policy, fit: Measured) -> dict[str, Any]:
    def named(option: int) -> dict[str, Any]:
        return dict(zip(("method", "n"), policy.options[option], strict=True))

    bins = policy.bins(fit.features)
    return {
        "probe": policy.probe,
        "weights": dict(zip(FEATURES, policy.weights, strict=True)),
        "borders": list(policy.borders),
        "budgets": [
            {
                "budget": one.budget,
                "probe": one.probe,
                "held_out_gain": {"mean": round(one.gain, 6), "error": round(one.error, 6)},
                "bins": [named(option) for option in one.bins],
                "single": named(one.single),
            }
            for one in policy.choices
        ],
        "fit": [_bin_json(fit, bins == place, named) for place in range(len(policy.borders) + 1)],
    }


def _bin_json(fit: Measured, chosen: NDArray[np.bool_], named: Any) -> dict[str, Any]:
    """What the fit saw in one bin."""
    searches = int(chosen.sum())
    if not searches:
        return {"searches": 0}
    return {
        "searches": searches,
        "rate": round(float(fit.rate[chosen].mean()), 6),
        "options": [
            {
                **named(option),
                "accuracy": round(float(fit.correct[chosen, option].mean()), 6),
                "tokens": round(float(fit.probed[chosen, option].mean()), 3),
            }
            for option in range(len(fit.options))
        ],
    }


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
