"""Durations as Go reads and prints them (time.ParseDuration), as every Kubernetes component takes them."""

import re
from fractions import Fraction

_NANOSECONDS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": 10**9}
_NANOSECONDS |= {"m": 60 * 10**9, "h": 3600 * 10**9}
_PART = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_WHOLE = re.compile(rf"[-+]?(?:0|(?:{_PART.pattern})+)", re.ASCII)

MAX_SECONDS = (1 << 63) / 1e9
"""A Go duration is a signed 64-bit number of nanoseconds: 292 years."""


def parse_duration(text: str) -> float:
    """Seconds of `30s`, `1m30s`, `100ms`, `-1.5h` or `0`. Raises ValueError."""
    if _WHOLE.fullmatch(text) is None:
        raise ValueError("is not a duration such as 30s, 1m30s or 100ms")
    parts = (Fraction(number) * _NANOSECONDS[unit] for number, unit in _PART.findall(text))
    seconds = float(sum(parts, Fraction(0)) / 10**9)
    if seconds >= MAX_SECONDS:
        raise ValueError("is longer than a duration can be, 292 years")
    return -seconds if text.startswith("-") else seconds


def format_duration(seconds: float) -> str:
    """Print seconds as Go does, to the nanosecond: `1h0m0s`, `1m30s`, `1.5s`, `100ms`, `0s`."""
    nanoseconds = round(abs(seconds) * 1e9)
    sign = "-" if seconds < 0 and nanoseconds else ""
    for unit, size in (("ns", 1), ("µs", 10**3), ("ms", 10**6)):
        if 0 < nanoseconds < size * 1000:
            return f"{sign}{_decimal(nanoseconds, size)}{unit}"
    minutes, rest = divmod(nanoseconds, 60 * 10**9)
    text = f"{_decimal(rest, 10**9)}s"
    if minutes:
        text = f"{minutes % 60}m{text}"
    if minutes >= 60:
        text = f"{minutes // 60}h{text}"
    return sign + text


def short_duration(seconds: float) -> str:
    """Print seconds without parts that are zero: `24h`, `1m`, `100ms`, `0`."""
    text = format_duration(seconds)
    return re.sub(r"(?<=m)0s$", "", re.sub(r"(?<=h)0m0s$", "", text)) if seconds else "0"


def _decimal(number: int, size: int) -> str:
    whole, rest = divmod(number, size)
    if not rest:
        return str(whole)
    return f"{whole}.{rest:0{len(str(size)) - 1}d}".rstrip("0")
