"""HTML that is safe by construction, and numbers as people read them.

What a model wrote is hostile text. `tag` escapes every child and attribute that is not `Html` itself, and only this
module makes `Html` from plain strings, so a section cannot forget to escape.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape
from typing import Any

NONE = "\N{EN DASH}"
"""Stands in a table where there is no figure."""
_VOID = frozenset({"meta", "rect", "circle", "line", "path", "polyline"})
# XML and HTML allow no control characters but tab and newline; models do emit them.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


class Html(str):
    """Text that is markup already. Made by `tag`, `join` and `trusted` only."""

    __slots__ = ()


def trusted(markup: str) -> Html:
    """Markup of acorn's own (its CSS, its script, its logo); never for anything read from an artifact."""
    return Html(markup)


def text(value: Any) -> Html:
    """`value` as escaped text; `Html` stays as it is, None is nothing."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else escape(_CONTROL.sub("\N{REPLACEMENT CHARACTER}", str(value)), quote=True))


def join(parts: Iterable[Any]) -> Html:
    return Html("".join(text(part) for part in parts))


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """`<name attributes>children</name>`.

    Attribute names: `class_` is `class`, other underscores become dashes. None and False leave an attribute out, True
    gives it without a value, floats are rounded to 2 places (SVG coordinates).
    """
    opened = f"<{name}{''.join(_attribute(key, value) for key, value in attributes.items())}"
    return Html(f"{opened}/>") if name in _VOID else Html(f"{opened}>{join(children)}</{name}>")


def _attribute(key: str, value: Any) -> str:
    if value is None or value is False:
        return ""
    name = key.rstrip("_").replace("_", "-") if key != "viewBox" else key
    if value is True:
        return f" {name}"
    return f' {name}="{text(coordinate(value) if isinstance(value, float) else value)}"'


def coordinate(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def table(
    head: Sequence[Any], rows: Iterable[Sequence[Any]], foot: Sequence[Any] | None = None, **attributes: Any
) -> Html:
    """A table that scrolls by itself where it is too wide. Cells made by `tag("td", ...)` stay, others are wrapped."""
    parts = [tag("thead", tag("tr", *(_cell(cell, "th") for cell in head)))]
    parts.append(tag("tbody", *(tag("tr", *(_cell(cell, "td") for cell in row)) for row in rows)))
    if foot:
        parts.append(tag("tfoot", tag("tr", *(_cell(cell, "td") for cell in foot))))
    return tag("div", tag("table", *parts, **attributes), class_="scroll")


def number(value: Any, **attributes: Any) -> Html:
    """A table cell set flush right in tabular figures."""
    attributes["class_"] = f"num {attributes.pop('class_', '')}".strip()
    return tag("td", value, **attributes)


def head_number(value: Any) -> Html:
    return tag("th", value, class_="num", scope="col")


def _cell(cell: Any, name: str) -> Html:
    if isinstance(cell, Html) and re.match(r"<t[dh][ >]", cell):
        return cell
    return tag(name, cell, scope="col" if name == "th" else None)


def figure(value: float) -> str:
    """Three significant digits, no exponent where a person would write none: `0.0123`, `4.56`, `12,300`."""
    if not math.isfinite(value):
        return str(value)
    if value == 0 or abs(value) >= 1000 or (abs(value) >= 100 and value == int(value)):
        return f"{value:,.0f}"
    if abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:.2e}".partition("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{digits}f}"


def count(value: float) -> str:
    """`412`, `86.5 k`, `12.3 M`, `1.7 B`: three digits and a unit."""
    return _scaled(value, 1000, ("", "k", "M", "B", "T"))


def flops(value: float) -> str:
    return _scaled(value, 1000, ("", "k", "M", "G", "T", "P", "E", "Z"))


def size(value: float) -> str:
    """Bytes in decimal units."""
    return _scaled(value, 1000, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    index = 0
    # 999.5 would print as "1,000": step up to the next unit before that.
    while abs(value) >= base - 0.5 and index < len(units) - 1:
        value, index = value / base, index + 1
    shown = f"{value:.0f}" if index == 0 or abs(value) >= 100 else f"{value:.{1 if abs(value) >= 10 else 2}f}"
    return f"{shown}\N{NO-BREAK SPACE}{units[index]}".strip()


def duration(seconds: float) -> str:
    """`0.4 s`, `42 s`, `8 min 12 s`, `3 h 05 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f}\N{NO-BREAK SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}\N{NO-BREAK SPACE}s"
    if whole < 3600:
        return f"{whole // 60}\N{NO-BREAK SPACE}min {whole % 60:02d}\N{NO-BREAK SPACE}s"
    if whole < 86_400:
        return f"{whole // 3600}\N{NO-BREAK SPACE}h {whole % 3600 // 60:02d}\N{NO-BREAK SPACE}min"
    return f"{whole // 86_400}\N{NO-BREAK SPACE}d {whole % 86_400 // 3600}\N{NO-BREAK SPACE}h"


def percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def moment(iso: str) -> str:
    """`2026-11-23 14:05 UTC` of an ISO timestamp; the text itself where it is none."""
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def short(key: str) -> str:
    """As much of a key as tells artifacts apart; the registry takes it as a name."""
    return key[:12]
