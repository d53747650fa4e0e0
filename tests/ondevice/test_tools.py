"""The agent's tools do what they say, and nothing else: no way out of the folder, no Python in the calculator."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ondevice.tools import ToolError, builtin_tools
from ondevice.tools.calculator import calculate
from ondevice.tools.files import MOST_TEXT, Files
from ondevice.tools.units import convert


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3+4)*2**5", "224"),
        ("7 // 2 + 7 % 4 - -1", "7"),
        ("2^10", "1024"),
        ("6 × 7 ÷ 2", "21"),  # noqa: RUF001
        ("sqrt(2)", "1.41421356237"),
        ("round(pi, 3) + abs(-1)", "4.142"),
        ("factorial(20)", "2432902008176640000"),
        ("2**200", str(2**200)),
        ("17% of 340 + 1", "58.8"),
        ("max(1, min(2, 3))", "2"),
    ],
)  # fmt: skip
def test_the_calculator_computes(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("9**9**9", "would have about .* bits, at most 4096"),
        ("(-9)**99999999", "would have about"),
        ("2**3000 * 2**2000", "has 5001 bits"),
        ("factorial(10**6)", "too large; at most 500"),
        ("1/0", "has no value: division by zero"),
        ("(-8)**0.5", "no finite real number"),
        ("1e308*10", "no finite real number"),
        ("exp(1000)", "has no value"),
        ("__import__('os').system('true')", "is not arithmetic"),
        ("open('/etc/passwd')", "is not arithmetic"),
        ("open(1)", "there is no function 'open'; there are abs"),
        ("().__class__", "is not arithmetic"),
        ("[1 for _ in range(9)]", "is not arithmetic"),
        ("lambda: 1", "is not arithmetic"),
        ("True + 1", "is not arithmetic"),
        ("'a' * 9", "is not arithmetic"),
        ("1j", "is not arithmetic"),
        ("x + 1", "is not arithmetic"),
        ("sqrt(x=4)", "is not arithmetic"),
        ("1 +", "is no arithmetic expression"),
        ("1" * 201, "201 characters, at most 200"),
        ("(" * 100 + "1", "no arithmetic expression"),
        ("\0", "no"),
    ],
)
def test_the_calculator_refuses_what_is_not_bounded_arithmetic(expression: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        calculate(expression)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("0123456789.+-*/%() ,eroundsqtpif^!factorialgcd"), max_size=60))
def test_the_calculator_always_ends_in_a_number_or_a_refusal(expression: str) -> None:
    with contextlib.suppress(ToolError, OverflowError):  # a whole number of 4,096 bits is no float
        float(calculate(expression))


@pytest.mark.parametrize(
    ("value", "unit", "to", "found"),
    [
        (5, "miles", "km", "5 miles = 8.04672 km"),
        (100, "Celsius", "F", "100 Celsius = 212 F"),
        (1, "GiB", "MB", "1 GiB = 1073.741824 MB"),
        (90, "km/h", "m/s", "90 km/h = 25 m/s"),
        (2, "square foot", "cm2", "2 square foot = 1858.0608 cm2"),
    ],
)
def test_units_are_converted(value: float, unit: str, to: str, found: str) -> None:
    assert convert(value, unit, to) == found


@pytest.mark.parametrize(
    ("value", "unit", "to", "message"),
    [
        (1, "km", "kg", "km is a unit of length, 'kg' is not"),
        (1, "parsnip", "km", "there is no unit 'parsnip'"),
        (-300, "celsius", "kelvin", "below absolute zero"),
        (1, "kelvin", "km", "kelvin is a unit of temperature"),
    ],
)
def test_units_that_do_not_fit_are_refused(value: float, unit: str, to: str, message: str) -> None:
    with pytest.raises(ToolError, match=message):
        convert(value, unit, to)


def test_the_time_knows_zones() -> None:
    [clock] = [spec for spec in builtin_tools(None) if spec.name == "time"]
    assert clock.call(zone="UTC").endswith("(UTC)")
    assert clock.call(zone="local")
    for zone in ("Mars/Base", "../../etc/passwd", "/etc/localtime"):
        with pytest.raises(ToolError, match="there is no time zone"):
            clock.call(zone=zone)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, beside a secret that links in it point at."""
    inside = tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "notes.txt").write_text("first\nsecond Apple\nthird\n")
    (inside / "sub" / "deep.md").write_text("an apple\n")
    (inside / "picture.png").write_bytes(b"\x89PNG\x00\xff")
    (tmp_path / "secret.txt").write_text("apple pie recipe")
    (inside / "link.txt").symlink_to(tmp_path / "secret.txt")
    (inside / "up").symlink_to(tmp_path)
    os.mkfifo(inside / "pipe")
    return inside


def test_files_are_listed_read_and_searched(folder: Path) -> None:
    files = Files(folder)
    listing = files.entries(".")
    assert "notes.txt  25 bytes" in listing and "sub/" in listing and "link.txt  (a link, not followed)" in listing
    assert files.read("notes.txt", 2) == "second Apple\nthird\n"
    assert files.read("sub/deep.md") == "an apple\n"
    assert files.search("APPLE", ".").splitlines() == ["notes.txt:2: second Apple", "sub/deep.md:1: an apple"]
    assert files.search("apple", "sub") == "sub/deep.md:1: an apple"
    assert files.search("pear") == "no line holds 'pear'"


@pytest.mark.parametrize(
    "path",
    [
        "../secret.txt", "sub/../../secret.txt", "/etc/passwd", "~/x", "link.txt", "up/secret.txt", "up", "..",
        "sub/..", "..\\secret.txt", "a\0b", "pipe", "picture.png", "nowhere.txt", "sub", "notes.txt/x",
        "/".join("a" * 20),
    ],
)  # fmt: skip
def test_nothing_outside_the_folder_nor_any_link_or_pipe_can_be_read(path: str, folder: Path) -> None:
    with pytest.raises(ToolError):
        Files(folder).read(path)


def test_a_link_that_replaces_a_folder_in_the_meantime_is_not_followed(folder: Path) -> None:
    files = Files(folder)
    assert files.read("sub/deep.md")
    (folder / "sub" / "deep.md").unlink()
    (folder / "sub").rmdir()
    (folder / "sub").symlink_to(folder.parent)
    with pytest.raises(ToolError, match="it is a symbolic link"):
        files.read("sub/secret.txt")
    assert "pie" not in files.search("apple")


def test_a_search_goes_past_a_folder_that_cannot_be_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "locked").mkdir()
    opened = os.open

    def refuse(path: str, *arguments: Any, **options: Any) -> int:
        if path == "locked":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    assert Files(folder).search("an apple") == "sub/deep.md:1: an apple"
    with pytest.raises(ToolError, match="Permission denied"):
        Files(folder).search("an apple", "locked")


def test_long_files_come_in_parts_that_say_how_to_go_on(folder: Path) -> None:
    (folder / "long.txt").write_text("".join(f"line {number}\n" for number in range(1, 2001)))
    files = Files(folder)
    seen, first = "", 1
    while True:
        text = files.read("long.txt", first)
        assert len(text) < MOST_TEXT + 100
        body, cut, rest = text.partition("\n(cut; go on with first_line ")
        seen = seen[: seen.rfind("\n") + 1] + body
        if not cut:
            break
        first = int(rest.split()[0])
    assert seen == (folder / "long.txt").read_text()
    with pytest.raises(ToolError, match="has 2000 lines, there is no line 3000"):
        files.read("long.txt", 3000)


def test_a_folder_that_is_none_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"--folder .* is no folder"):
        builtin_tools(tmp_path / "none")
