"""Rows as one HTML file: nothing is loaded from anywhere, and what a model wrote is escaped (`acorn.report.markup`)."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files

from acorn.data.parts import parts
from acorn.data.rows import Found, Seen, kind_of
from acorn.report.markup import Html, tag, trusted

PAGE_ROWS = 500
"""Rows of a page: about 1 MB, which every browser scrolls."""


def render(name: str, rows: Sequence[Found], seen: Seen, summary: str) -> str:
    """The page's text. Its filters work on the rows it holds; without a script they are not shown."""
    style, script = (files("acorn.data").joinpath(name).read_text("utf-8") for name in ("rows.css", "rows.js"))
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", f"rows of {name}"),
        tag("style", trusted(style)),
    )
    body = tag(
        "body",
        tag("h1", f"rows of {name}"),
        tag("p", summary),
        _form(seen),
        tag("main", *map(_article, rows)),
        tag("script", trusted(script)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def _form(seen: Seen) -> Html:
    choices = [tag("option", label, value=label) for label in ("all", "kept", "rejected")]
    # A reason is marked off from the three words above by a colon, in case one is called "kept".
    choices += [tag("option", f"{why} ({count})", value=f":{why}") for why, count in _reasons(seen)]
    select = tag("select", *choices, name="reason", aria_label="which rows")
    words = tag("input", name="words", type="search", placeholder="words in a row", aria_label="words in a row")
    return tag("form", select, words, tag("output"), tag("small", "j, k: next, previous"), hidden=True)


def _reasons(seen: Seen) -> list[tuple[str, int]]:
    """Reasons by their number; those that say more behind a line for all of their kind."""
    kinds: dict[str, list[tuple[str, int]]] = {}
    for why, count in seen.reasons.most_common():
        kinds.setdefault(str(kind_of(why)), []).append((why, count))
    found: list[tuple[str, int]] = []
    for kind, some in kinds.items():
        if len(some) > 1:
            some = [(kind, sum(count for _, count in some)), *(one for one in some if one[0] != kind)]
        found += some
    return found


def _article(found: Found) -> Html:
    texts, rest = parts(found.row)
    state = "kept" if found.reason is None else f"rejected: {found.reason}"
    return tag(
        "article",
        tag("header", f"{state}, {found.file}:{found.number}"),
        *(tag("section", tag("h2", part.title), tag("pre", part.text, class_=part.style)) for part in texts),
        tag("small", json.dumps(rest, ensure_ascii=False)) if rest else None,
        class_="kept" if found.reason is None else "refused",
        data_reason=found.reason,
    )


def _policy(style: str, script: str) -> str:
    return f"default-src 'none'; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'"


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
