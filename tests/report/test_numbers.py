import pytest

from vfm_jax.report.numbers import format_duration, format_large, format_percent, format_points, format_value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (True, "yes"), (1234567, "1,234,567"), (0.0, "0"), (0.123456, "0.1235"), (1706.4, "1,706"),
        (1.5e-4, "0.00015"), (3.2e-7, "3.2e-07"), (float("nan"), "nan"), (float("-inf"), "-inf"), ("adamw", "adamw"),
        (99999.0, "99,999"), (1.25e9, "1.25e+09"),
    ],
)  # fmt: skip
def test_cells_are_short_and_exact_enough(value, shown):
    assert format_value(value) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(4.25, "4.2 s"), (48, "48 s"), (59.7, "1 min 00 s"), (145.2, "2 min 25 s"), (11220, "3 h 07 min"),
     (187200, "2 d 04 h"), (None, "–"), (float("inf"), "–")],
)  # fmt: skip
def test_durations_have_their_two_largest_units(seconds, shown):
    assert format_duration(seconds) == shown


def test_shares_are_percent_and_differences_points():
    assert format_percent(0.9254) == "92.5 %"
    assert format_percent(float("nan")) == "–"
    assert format_points(0.1612) == "+16.1"
    assert format_points(-0.02) == "−2.0"
    assert format_points(-0.0001) == "±0.0"


def test_large_counts_are_words():
    assert [format_large(n) for n in (942, 461234, 86.6e6, 1.01e9)] == [
        "942", "461 thousand", "86.6 million", "1.01 billion",
    ]  # fmt: skip
