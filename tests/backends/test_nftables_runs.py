"""Numbered elements that are kept as one text for each frontend: they behave as a dictionary of elements."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.backends.nftables.element_owners import elements_at, no_contents, value_at
from kproxy.backends.nftables.names import LOCAL_ENDPOINT_0, numbered
from kproxy.backends.nftables.runs import MOST_NUMBERS, Runs, run_of, runs_from

FRONTENDS = ("10.96.0.1 . 6 . 80", "10.96.0.2 . 17 . 53")

_KEYS = st.builds("{} . {}".format, st.sampled_from(FRONTENDS), st.sampled_from([0, 1, 2, MOST_NUMBERS - 1]))
_VALUES = st.sampled_from(["10.1.0.1 . 80", "10.1.0.2 . 80"])
_CHANGES = st.lists(st.tuples(_KEYS, st.none() | _VALUES), max_size=12)


def _runs(elements: dict[str, str]) -> Runs:
    made = Runs()
    made.update(elements)
    return made


@given(_CHANGES, st.dictionaries(_KEYS, _VALUES))
def test_they_follow_a_dictionary(changes: list[tuple[str, str | None]], more: dict[str, str]) -> None:
    expected: dict[str, str] = {}
    actual = Runs()
    for key, value in changes:
        if value is not None:
            expected[key] = actual[key] = value
        elif key in expected:
            del expected[key], actual[key]
        else:
            with pytest.raises(KeyError):
                del actual[key]
        assert actual.get(key) == expected.get(key)
    expected.update(more)
    actual.update(_runs(more))
    assert actual == expected
    assert len(actual) == len(expected)
    assert dict(zip(actual, actual.values(), strict=True)) == expected
    assert {frontend for frontend in FRONTENDS if actual.run(frontend)} == set(actual.runs())


@given(st.dictionaries(_KEYS, _VALUES), st.dictionaries(_KEYS, _VALUES))
def test_what_was_found_shares_equal_text_with_what_is_wanted(
    found: dict[str, str], wanted: dict[str, str]
) -> None:
    of_wanted = _runs(wanted)
    made = runs_from(found, of_wanted)
    assert made == found
    for frontend in FRONTENDS:
        run = run_of(found, frontend)
        assert run_of(made, frontend) == run
        if run and run == of_wanted.run(frontend):
            assert run_of(made, frontend) is of_wanted.run(frontend)


@pytest.mark.parametrize("number", [str(MOST_NUMBERS), "4294967295", "x"])
def test_numbers_that_kproxy_never_writes_take_no_memory(number: str) -> None:
    found = {f"{FRONTENDS[0]} . {number}": "10.1.0.1 . 80", f"{FRONTENDS[0]} . 1": "10.1.0.2 . 80"}
    assert runs_from(found, Runs()) == found
    assert run_of(found, FRONTENDS[0]) == "\n10.1.0.2 . 80"
    with pytest.raises(ValueError, match="no number below"):
        Runs()[f"{FRONTENDS[0]} . {number}"] = "10.1.0.1 . 80"


def test_a_slot_of_a_numbered_map_is_all_elements_of_a_frontend() -> None:
    contents = no_contents()
    several, single = (numbered(3, 0), FRONTENDS[0]), (LOCAL_ENDPOINT_0, FRONTENDS[0])
    contents[several[0]].update({f"{FRONTENDS[0]} . {n}": f"10.1.0.{n} . 80" for n in (1, 2)})
    contents[single[0]][FRONTENDS[0]] = "10.1.0.9 . 80"
    assert elements_at(several, value_at(contents, several)) == contents[several[0]]
    assert elements_at(single, value_at(contents, single)) == {FRONTENDS[0]: "10.1.0.9 . 80"}
    other = (several[0], FRONTENDS[1])
    assert elements_at(other, value_at(contents, other)) == {}
