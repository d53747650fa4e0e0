"""Unit conversion by a small table: factors to one unit of each dimension (exact where they are defined exactly)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from ondevice.tools import ToolError

_Value = TypeVar("_Value")

_TABLE: dict[str, dict[str, float]] = {
    "length": {
        "m meter metre": 1,
        "km kilometer kilometre": 1e3,
        "cm centimeter centimetre": 1e-2,
        "mm millimeter millimetre": 1e-3,
        "um micrometer micron": 1e-6,
        "nm nanometer": 1e-9,
        "in inch inches": 0.0254,
        "ft foot feet": 0.3048,
        "yd yard": 0.9144,
        "mi mile": 1609.344,
        "nmi nautical_mile": 1852,
    },
    "mass": {
        "kg kilogram": 1,
        "g gram": 1e-3,
        "mg milligram": 1e-6,
        "t tonne ton": 1e3,
        "lb pound lbs": 0.45359237,
        "oz ounce": 0.028349523125,
        "st stone": 6.35029318,
    },
    "time": {
        "s second sec": 1,
        "ms millisecond": 1e-3,
        "us microsecond": 1e-6,
        "min minute": 60,
        "h hour hr": 3600,
        "d day": 86400,
        "week wk": 604800,
        "year yr": 31557600,  # Julian
    },
    "volume": {
        "l liter litre": 1,
        "ml milliliter millilitre": 1e-3,
        "cl centiliter": 1e-2,
        "m3 cubic_meter": 1e3,
        "cm3 cubic_centimeter": 1e-3,
        "gal gallon": 3.785411784,  # of the United States, as the next four
        "qt quart": 0.946352946,
        "pt pint": 0.473176473,
        "cup": 0.2365882365,
        "tbsp tablespoon": 0.01478676478125,
        "tsp teaspoon": 0.00492892159375,
    },
    "area": {
        "m2 square_meter": 1,
        "km2 square_kilometer": 1e6,
        "cm2 square_centimeter": 1e-4,
        "ha hectare": 1e4,
        "acre": 4046.8564224,
        "ft2 square_foot square_feet": 0.09290304,
        "mi2 square_mile": 2589988.110336,
    },
    "speed": {"m/s mps": 1, "km/h kmh kph": 1 / 3.6, "mph mi/h": 0.44704, "kn knot": 1852 / 3600},
    "energy": {
        "j joule": 1,
        "kj kilojoule": 1e3,
        "cal calorie": 4.184,
        "kcal kilocalorie": 4184,
        "kwh": 3.6e6,
        "wh": 3600,
    },
    "power": {"w watt": 1, "kw kilowatt": 1e3, "hp horsepower": 745.69987158227022},
    "pressure": {"pa pascal": 1, "kpa": 1e3, "bar": 1e5, "atm atmosphere": 101325, "psi": 6894.757293168361},
    "data": {
        "b byte": 1,
        "bit": 1 / 8,
        "kb kilobyte": 1e3,
        "mb megabyte": 1e6,
        "gb gigabyte": 1e9,
        "tb terabyte": 1e12,
        "kib kibibyte": 1 << 10,
        "mib mebibyte": 1 << 20,
        "gib gibibyte": 1 << 30,
        "tib tebibyte": 1 << 40,
    },
}
_TO_KELVIN: dict[str, Callable[[float], float]] = {
    "k kelvin": lambda value: value,
    "c celsius °c": lambda value: value + 273.15,
    "f fahrenheit °f": lambda value: (value + 459.67) * 5 / 9,
}
_FROM_KELVIN: dict[str, Callable[[float], float]] = {
    "k kelvin": lambda value: value,
    "c celsius °c": lambda value: value - 273.15,
    "f fahrenheit °f": lambda value: value * 9 / 5 - 459.67,
}


def convert(value: float, unit: str, to: str) -> str:
    """`value` of `unit` in units of `to`, as "5 mi = 8.04672 km". Raises ToolError."""
    if (hot := _look_up(_TO_KELVIN, unit)) and (cold := _look_up(_FROM_KELVIN, to)):
        kelvin = hot(value)
        if kelvin < -1e-9:
            raise ToolError(f"{value:.12g} {unit} is below absolute zero")
        return f"{value:.12g} {unit} = {round(cold(kelvin), 9):.10g} {to}"
    for units in _TABLE.values():
        if (factor := _look_up(units, unit)) and (wanted := _look_up(units, to)):
            return f"{value:.12g} {unit} = {value * factor / wanted:.10g} {to}"
    kinds = [kind for kind, units in _TABLE.items() if _look_up(units, unit)]
    if not kinds and not hot:
        raise ToolError(
            f"there is no unit {unit!r}; known are, for example, km, mile, kg, lb, hour, l, celsius, kWh, MiB"
        )
    raise ToolError(f"{unit} is a unit of {kinds[0] if kinds else 'temperature'}, {to!r} is not")


def _look_up(units: dict[str, _Value], name: str) -> _Value | None:
    """By abbreviation or name, in the singular or plural, whatever the case."""
    spelt = name.strip().lower().replace(" ", "_")
    for names, value in units.items():
        if any(spelt in (known, f"{known}s") for known in names.split()):
            return value
    return None
