"""How numbers are written for people, in one place: tables, the terminal line and the page agree."""

import math
from typing import Any

ABSENT = "–"


def format_value(value: Any) -> str:
    """Any cell of a table: counts with thousands separators, other numbers to four significant digits.

    None is a dash, booleans are yes and no, everything else is its `str`.
    """
    if value is None:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if not math.isfinite(value):
        return str(value)
    if value and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.4g}" if abs(value) < 1e3 else f"{value:,.0f}"


def format_percent(ratio: float | None, digits: int = 1) -> str:
    """A share in [0, 1] as percent: "93.4 %"."""
    return ABSENT if ratio is None or not math.isfinite(ratio) else f"{100 * ratio:.{digits}f} %"


def format_points(difference: float | None) -> str:
    """A difference of two shares in percentage points, signed: "+16.1"."""
    if difference is None or not math.isfinite(difference):
        return ABSENT
    points = f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")
    return f"±{points[1:]}" if points[1:] == "0.0" else points


def format_duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: "48 s", "2 min 25 s", "3 h 07 min", "2 d 04 h"."""
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return ABSENT
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours:02d} h"
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def format_large(count: float | None) -> str:
    """A large count, shortened: "942", "461 thousand", "86.6 million", "1.01 billion"."""
    if count is None or not math.isfinite(count):
        return ABSENT
    for size, word in ((1e9, "billion"), (1e6, "million"), (1e3, "thousand")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return f"{count:.0f}"
