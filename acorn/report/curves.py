"""Training curves of every model: the loss large, what else was logged beside it, the rest as small curves."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from acorn.report.charts import SMOOTH_FROM, Series, line_chart, sparkline
from acorn.report.evaluation import missing, model_colour
from acorn.report.markup import Html, count, duration, figure, join, percent, tag
from acorn.report.read import Log, Made, Run, read_log

CHOSEN, REJECTED = 8, 9
"""Palette numbers of the two answers of a preference pair."""
LOSSES = ("train/loss", "validation/loss")
REWARDS = ("train/rewards/chosen", "train/rewards/rejected")
ACCURACY = "train/rewards/accuracies"
_DRAWN = (*LOSSES, *REWARDS, ACCURACY, "train/tokens", "train/epoch")
_NAMES = {"train/tokens_per_second": "tokens per second", "train/grad_norm": "gradient norm"}


def curves(run: Run) -> Html | None:
    """One block a model step that trains."""
    steps = [made for made in run.of_kind("model") if _trains(made)]
    return join(_block(run, made) for made in steps) if steps else None


def _trains(made: Made) -> bool:
    """A model that is not built may have been about to train; one that is built and logged nothing was copied."""
    return made.artifact is None or bool(read_log(made).curves)


def _block(run: Run, made: Made) -> Html:
    if made.artifact is None:
        return tag("div", tag("h3", made.name), missing([made]), class_="block")
    log = read_log(made)
    colour = model_colour(run, made.name)
    charts = [chart for chart in (_losses(log, colour), _rewards(log), _accuracy(log, colour)) if chart]
    head = tag("h3", tag("i", class_=f"swatch c{colour}"), made.name, tag("small", _about(made)))
    return tag("div", head, tag("div", *charts, _small(log, colour), class_="charts"), class_="block")


def _about(made: Made) -> str:
    tokens, seconds = made.figure("tokens"), made.figure("seconds")
    parts = [made.step.stage.name]
    parts += [f"{count(tokens)} tokens"] if tokens else []
    parts += [duration(seconds)] if seconds is not None else []
    return " · ".join(parts)


def _losses(log: Log, colour: int) -> Html | None:
    train, validation = (log.curve(name) for name in LOSSES)
    series = [Series("train", train, colour)] if train else []
    series += [Series("validation", validation, colour, dashed=bool(train))] if validation else []
    unit = "nats per pair" if log.curve(REWARDS[0]) else "nats per token"
    return _figure("Loss", unit, series) if series else None


def _rewards(log: Log) -> Html | None:
    chosen, rejected = (log.curve(name) for name in REWARDS)
    if not chosen or not rejected:
        return None
    series = [Series("chosen", chosen, CHOSEN), Series("rejected", rejected, REJECTED)]
    return _figure("Implicit rewards", "beta times the log-ratio to the reference", series, log=False)


def _accuracy(log: Log, colour: int) -> Html | None:
    accuracy = log.curve(ACCURACY)
    if not accuracy:
        return None
    caption = "share of pairs whose chosen answer has the larger reward"
    return _figure("Reward accuracy", caption, [Series("pairs", accuracy, colour)], log=False, show=_whole_percent)


def _whole_percent(share: float) -> str:
    return percent(share, 0)


def _figure(
    title: str,
    caption: str,
    series: Sequence[Series],
    log: bool | None = None,
    show: Callable[[float], str] = figure,
) -> Html:
    smooth = any(len(one.points) >= SMOOTH_FROM for one in series)
    words = f"{caption} (faint: as logged; strong: moving average)" if smooth else caption
    values = [y for one in series for _, y in one.points]
    if lost := sum(not math.isfinite(y) for y in values):
        words += f"; {lost} of {len(values)} values are NaN or infinite"
    if lost == len(values):
        return tag("figure", tag("figcaption", tag("b", title), tag("span", words)))
    drawn = line_chart(series, "optimizer step", log, show)
    return tag("figure", tag("figcaption", tag("b", title), tag("span", words)), drawn)


def _small(log: Log, colour: int) -> Html | None:
    """Everything else that was logged more than once, as small multiples with last value and range."""
    names = [name for name, curve in log.curves.items() if name not in _DRAWN and len(curve) > 1]
    if not names:
        return None
    return tag("div", *(_multiple(name, log.curves[name], colour) for name in names), class_="multiples")


def _multiple(name: str, curve: Sequence[tuple[float, float]], colour: int) -> Html:
    heights = [y for _, y in curve if math.isfinite(y)]
    if not heights:
        return tag("div", tag("p", tag("b", name), "only NaN or infinity"), class_="multiple")
    show = count if max(map(abs, heights)) >= 1e4 else figure
    title = _NAMES.get(name, name.removeprefix("train/").replace("_", " "))
    words = f"{show(min(heights))} to {show(max(heights))}"
    head = tag("p", tag("b", title), tag("span", show(heights[-1])))
    return tag("div", head, sparkline(curve, colour, title), tag("small", words), class_="multiple")
