"""The page of `acorn serve`: what a strict content security policy and a strict reader would ask of it."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WEB = ROOT / "serve" / "web"


def test_the_page_asks_nobody_else_for_anything() -> None:
    for path in WEB.iterdir():
        assert not re.search(r"(https?:)?//[a-z0-9]+\.", path.read_text()), path.name
    page = (WEB / "index.html").read_text()
    named = re.findall(r'(?:src|href)="([^"]+)"', page)
    assert {name for name in named if not name.startswith("data:")} == {"app.js", "style.css"}
    imported = re.findall(r'from "\./([a-z]+\.js)"', "".join(path.read_text() for path in WEB.glob("*.js")))
    assert set(imported) <= {path.name for path in WEB.iterdir()}


def test_nothing_in_the_page_is_inline_and_no_text_becomes_markup() -> None:
    page = (WEB / "index.html").read_text()
    assert not re.search(r"<script(?![^>]* src=)|<style|\son[a-z]+=|\sstyle=", page)
    for path in WEB.glob("*.js"):
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", path.read_text()
        )


def test_every_part_of_the_page_is_in_the_package() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["*"]
    assert all(any(fnmatch(path.name, pattern) for pattern in patterns) for path in WEB.iterdir())
    ids = set(re.findall(r'\$\("([a-z-]+)"\)', (WEB / "app.js").read_text()))
    page = (WEB / "index.html").read_text()
    assert all(f'id="{name}"' in page for name in ids)
