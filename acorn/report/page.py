"""A page as one file: style, drawings and a short script inside, and a policy that forbids it to ask for more."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from pathlib import Path

from acorn.report.markup import Html, tag, trusted


def page(title: str, *parts: Html) -> str:
    """The text of a page with these parts in its body."""
    style, script = _resource("report.css"), _resource("report.js")
    tip = tag("div", id="tip", hidden=True)
    body = tag("body", *parts, tip, tag("script", trusted(script)))
    return f"<!doctype html>\n{tag('html', _head(title, style, script), body, lang='en')}\n"


def write_page(text: str, path: Path) -> Path:
    """Replace the file at `path` in one step, and return `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path


def mark() -> Html:
    """acorn's logo."""
    return trusted(_resource("mark.html"))


def _head(title: str, style: str, script: str) -> Html:
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_policy(style, script)),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", trusted(style)),
    )


def _policy(style: str, script: str) -> str:
    """Nothing from anywhere; only this style and this script, named by their hashes (CSP level 2)."""
    return f"default-src 'none'; style-src '{_sha256(style)}'; script-src '{_sha256(script)}'"


def _sha256(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _resource(name: str) -> str:
    return (files("acorn.report") / name).read_text(encoding="utf-8")
