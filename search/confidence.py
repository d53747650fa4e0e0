"""DeepConf: votes weighted by the model's own confidence, and samples that lose it stopped early. No verifier.

After Fu et al. 2025 (arXiv:2508.15260, section 3). Confidence of a token is minus the mean log-probability of its
`top` most probable alternatives; of a group, the mean over the last `window` tokens; of a sample, its lowest group.
Warm-up samples run to their end; `keep` of them would pass the threshold, and a later sample whose group falls below
it stops at the next check. What is stopped is cut: its tokens are spent, it does not vote.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from search.options import DeepConf
from search.scheduler import Search, Step
from search.tree import Outcome
from search.trial import Path, Trial
from search.votes import group


def deepconf(trial: Trial, options: DeepConf) -> Search[Outcome]:
    root = yield from trial.root()
    warm = trial.start(root, min(options.warmup, options.size))
    lowest = yield from _run(trial, warm, options, -math.inf)
    threshold = passing(lowest, options.keep)
    paths = list(warm)
    while not _agreed(trial, paths, options) and (wave := trial.start(root, _wave(options, len(paths)))):
        yield from _run(trial, wave, options, threshold)
        paths += wave
    return trial.conclude(paths, "weighted")


def _wave(options: DeepConf, started: int) -> int:
    """After the warm-up one sample at a time where consensus can end the vote, else all at once."""
    left = options.size - started
    return min(left, 1) if options.consensus < 1 else left


def _run(trial: Trial, paths: Sequence[Path], options: DeepConf, threshold: float) -> Search[list[float]]:
    """Grow `paths` until they end or a group's confidence falls below `threshold`; their lowest groups."""
    sampling = replace(trial.setup.sampling, logprobs=options.top)
    tokens: dict[int, list[float]] = {id(path): [] for path in paths}
    pieces: dict[int, list[int]] = {id(path): [] for path in paths}
    live = list(paths)
    while live:
        limits = [min(options.check, trial.room(path)) for path in live]
        outs = yield Step([path.seq for path in live], limits, sampling)
        for path, out in zip(live, outs, strict=True):
            trial.take(path, out, [])
            pieces[id(path)] += out.ids
            tokens[id(path)] += [-math.fsum(p for _, p in top) / len(top) for top in out.top]
            if path.status == "live" and lowest_group(tokens[id(path)], options.window) < threshold:
                trial.cut(path)
        live = [path for path in live if path.status == "live"]
    for path in paths:
        trial.add_steps(path, trial.setup.splitter.split(pieces[id(path)]))
        path.weight = lowest_group(tokens[id(path)], options.window)
    trial.drop(paths)
    return [path.weight or 0.0 for path in paths]


def lowest_group(confidences: Sequence[float], window: int) -> float:
    """Least mean over `window` tokens in a row; over all of them where there are fewer."""
    if not confidences:
        return 0.0
    width = min(window, len(confidences))
    total = lowest = math.fsum(confidences[:width])
    for index in range(width, len(confidences)):
        total += confidences[index] - confidences[index - width]
        lowest = min(lowest, total)
    return lowest / width


def passing(values: Sequence[float], keep: float) -> float:
    """The threshold that the highest `keep` of `values` (at least one) reach."""
    ordered = sorted(values, reverse=True)
    return ordered[max(1, math.ceil(keep * len(ordered))) - 1] if ordered else -math.inf


def _agreed(trial: Trial, paths: Sequence[Path], options: DeepConf) -> bool:
    """Whether the leading answer has its share of the confidence already."""
    if options.consensus >= 1 or not paths:
        return False
    candidates = trial.candidates(paths)
    groups = group(candidates, trial.setup.reader.same)
    sums = [math.fsum(candidates[index].weight or 0.0 for index in members) for members in groups]
    return bool(sums) and max(sums) >= options.consensus * math.fsum(sums)
