"""The fitted law: it finds one that is there, is not led astray by one bad run, and admits what it cannot know."""

from __future__ import annotations

import pytest

from acorn.law import Law, TooFewSizes, fit, predict

TRUE = Law(floor=1.5, scale=0.8, exponent=0.3, unit=1e12)
COMPUTE = (1e10, 1e11, 5e11, 3e12, 1e13)


def test_a_law_that_is_there_is_found_and_extrapolates() -> None:
    law = fit([(compute, TRUE(compute)) for compute in COMPUTE])
    assert law.floor == pytest.approx(1.5, rel=1e-4) and law.exponent == pytest.approx(0.3, rel=1e-4)
    assert law(1e15) == pytest.approx(TRUE(1e15), rel=1e-4)


def test_without_a_floor_it_is_a_power_law() -> None:
    law = fit([(compute, 3.0 * (compute / 1e12) ** -0.1) for compute in COMPUTE])
    assert law.floor < 1e-2 and law(1e14) == pytest.approx(3.0 * 100**-0.1, rel=1e-3)


def test_one_run_that_went_wrong_moves_the_law_less_than_least_squares_would() -> None:
    points = [(compute, TRUE(compute)) for compute in (*COMPUTE, 3e10, 2e11, 1e12)]
    spoiled = [*points[:2], (points[2][0], 1.2 * points[2][1]), *points[3:]]
    assert fit(spoiled)(1e14) == pytest.approx(TRUE(1e14), rel=2e-3)


def test_the_range_says_how_much_hangs_on_a_single_size() -> None:
    exact = predict([(compute, TRUE(compute)) for compute in COMPUTE], 1e14)
    assert exact.low == pytest.approx(exact.high, rel=1e-3)
    noisy = [(compute, TRUE(compute) * (1 + 0.01 * (-1) ** at)) for at, compute in enumerate(COMPUTE)]
    rough = predict(noisy, 1e14)
    assert rough.high - rough.low > 20 * (exact.high - exact.low)
    assert rough.low <= rough.loss <= rough.high


def test_too_few_sizes_and_figures_that_are_none_are_refused() -> None:
    with pytest.raises(TooFewSizes, match=r"2 sizes are too few .* train at least 3"):
        fit([(1e10, 2.0), (1e11, 1.8)])
    with pytest.raises(TooFewSizes):
        fit([(1e10, 2.0), (1e10, 1.9), (1e11, 1.8)])
    with pytest.raises(ValueError, match=r"not compute 100000000000\.0 and loss nan"):
        fit([(1e10, 2.0), (1e11, float("nan")), (1e12, 1.8)])
