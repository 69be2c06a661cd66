"""Durations as Go has them: the examples are what time.ParseDuration takes and Duration.String prints."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.config.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("0s", 0.0),
        ("30s", 30.0),
        ("1m30s", 90.0),
        ("15m0s", 900.0),
        ("24h0m0s", 86400.0),
        ("100ms", 0.1),
        ("1.5h", 5400.0),
        (".5s", 0.5),
        ("2us", 2e-6),
        ("2µs", 2e-6),
        ("7ns", 7e-9),
        ("-5s", -5.0),
        ("+5s", 5.0),
        ("1s1s", 2.0),
    ],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "3x", "30", "s", "1 s", "1s ", ".s", "1h-5m", "٣s", "1d", "soon", "--5s"]
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration such as 30s"):
        parse_duration(text)


def test_one_that_go_cannot_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="292 years"):
        parse_duration("9999999h")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0s"),
        (30.0, "30s"),
        (90.0, "1m30s"),
        (3600.0, "1h0m0s"),
        (86400.0, "24h0m0s"),
        (0.1, "100ms"),
        (1.5, "1.5s"),
        (0.0015, "1.5ms"),
        (2e-6, "2µs"),
        (7e-9, "7ns"),
        (-90.0, "-1m30s"),
    ],
)
def test_durations_are_printed_as_go_prints_them(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@given(st.integers(-(10**15), 10**15))
def test_what_is_printed_is_read_as_the_same(microseconds: int) -> None:
    seconds = microseconds / 1e6
    assert parse_duration(format_duration(seconds)) == pytest.approx(seconds, abs=1e-9, rel=1e-15)
