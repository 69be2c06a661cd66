import math
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.core.bisect import bisect_refused


class Refused(Exception):
    pass


def narrowed(items: Sequence[str], bad: set[str]) -> tuple[list[str], list[str], int]:
    """What was written, what was given up, and how many writes that took."""
    written: list[str] = []
    given_up: list[str] = []
    attempts = 0

    def attempt(some: Sequence[str]) -> None:
        nonlocal attempts
        attempts += 1
        if bad & set(some):
            raise Refused
        written.extend(some)

    def give_up(item: str, _: Refused) -> None:
        given_up.append(item)

    bisect_refused(items, attempt, give_up, refusal=Refused, classify_refusal=lambda _: None)
    return written, given_up, attempts


@given(st.lists(st.sampled_from("abcdefghijklm"), unique=True), st.sets(st.sampled_from("abcdefghijklm")))
def test_the_good_are_written_once_and_the_bad_given_up(items: list[str], bad: set[str]) -> None:
    written, given_up, attempts = narrowed(items, bad)
    assert written == [item for item in items if item not in bad]
    assert given_up == [item for item in items if item in bad]
    assert attempts <= 1 + 2 * len(given_up) * math.ceil(math.log2(len(items) or 1))


def test_an_error_that_is_not_the_items_fault_ends_it() -> None:
    def attempt(_: Sequence[str]) -> None:
        raise Refused

    def classify_refusal(error: Refused) -> None:
        raise RuntimeError from error

    with pytest.raises(RuntimeError):
        bisect_refused(
            ["a", "b"], attempt, lambda *_: None, refusal=Refused, classify_refusal=classify_refusal
        )
