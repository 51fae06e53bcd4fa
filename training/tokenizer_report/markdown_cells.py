"""Numbers, tables and pictures as Markdown shows them; what is not known is a dash."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DASH = "–"


def bias(entry: Mapping[str, Any] | None, key: str = "pooled") -> str:
    """A flux bias in percent with its standard error; `key` is `pooled` or `median`."""
    if entry is None:
        return DASH
    error = entry[f"{key}_error"]
    return with_error(100 * entry[key], None if error is None else 100 * error, 2, signed=True)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def picture(pictures: Mapping[str, str], name: str, title: str) -> str:
    """The picture of a name, if there is one."""
    return f"![{title}]({pictures[name]})" if name in pictures else ""


def number(value: float | None, digits: int) -> str:
    """A number with so many digits behind the point, or a dash; three digits from 1000 on."""
    if value is None:
        return DASH
    # Far from one, digits behind the point say nothing.
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.3g}" if digits else f"{value:.0f}"


def ratio(value: float | None, other: float | None) -> str:
    """The ratio of two numbers; a dash if one is missing or the second is zero."""
    return number(value / other, 2) if value is not None and other else DASH


def with_error(value: float | None, error: float | None, digits: int, *, signed: bool = False) -> str:
    """A number and its standard error."""
    if value is None:
        return DASH
    text = f"{value:+.{digits}f}" if signed else number(value, digits)
    return text if error is None else f"{text} ± {number(error, digits)}"


def percent(share: float | None, digits: int = 0) -> str:
    """A share in percent."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def listed(names: Sequence[str]) -> str:
    """Names as a sentence has them."""
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


def percent_range(shares: Sequence[float | None]) -> str:
    """Shares in percent, from the least to the largest."""
    known = [share for share in shares if share is not None]
    if not known:
        return DASH
    low, high = percent(min(known)), percent(max(known))
    return high if low == high else f"{low} to {high}"


def magnitude_range(low: float | None, high: float | None) -> str:
    """A bin of magnitudes; None is an open end."""
    if low is None:
        return f"below {high:g}"
    return f"above {low:g}" if high is None else f"{low:g} to {high:g}"
