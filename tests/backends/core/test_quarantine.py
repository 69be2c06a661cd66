"""Refused services by cause, objects that would not go, and writes of others: each rule by itself."""

from __future__ import annotations

import pytest

from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.quarantine import PROVEN, Cause, Quarantine
from kproxy.backends.core.retries import Leftovers, retry_interval
from kproxy.backends.core.shapes import error_kind
from kproxy.kernel.xtables.types import RulesetGeneration

NO_MATCH = Cause("no match", "with affinity")
OTHER = Cause("no memory")


class World:
    """A quarantine and its clock."""

    def __init__(self) -> None:
        self.now = 100.0
        self.quarantine = Quarantine(lambda: self.now)

    def refuse(self, *keys: str, cause: Cause = NO_MATCH) -> None:
        for key in keys:
            self.quarantine.add(key, f"{key}: {cause.error}", cause)

    def retry(self, cause: Cause, *refused: str) -> list[str]:
        """Try the services of a cause that are to be tried; the kernel refuses these again."""
        taken = self.quarantine.take(cause)
        again = {key: reason for key, reason in taken.items() if key in refused}
        self.quarantine.restore(cause, again.items())
        self.quarantine.tried(cause, accepted=len(again) < len(taken), refused=bool(again))
        return list(taken)


def test_a_refused_service_is_in_quarantine_until_it_is_released() -> None:
    world = World()
    world.refuse("a", "b")
    found = world.quarantine
    assert ("a" in found, "c" in found, len(found), set(found.keys)) == (True, False, 2, {"a", "b"})
    assert found.reasons == {"a": "a: no match", "b": "b: no match"}
    assert found.discard("a")
    assert not found.discard("a")
    assert found.discard("b")
    assert (len(found), found.next_due(), found.due()) == (0, None, None)


def test_a_service_that_is_refused_again_has_its_newest_reason_and_cause() -> None:
    world = World()
    world.refuse("a")
    world.refuse("a", cause=OTHER)
    assert world.quarantine.reasons == {"a": "a: no memory"}
    world.now += 1000
    assert world.quarantine.due() == OTHER
    assert world.retry(OTHER) == ["a"]
    assert world.quarantine.next_due() is None


def test_each_cause_has_its_time_and_the_longest_overdue_comes_first() -> None:
    world = World()
    world.refuse("a")
    first = 100.0 + retry_interval("no match", 1)
    assert (world.quarantine.next_due(), world.quarantine.due()) == (first, None)
    world.now = 100.5
    world.refuse("b", cause=OTHER)
    assert world.quarantine.next_due() == min(first, 100.5 + retry_interval("no memory", 1))
    world.now = first
    assert world.quarantine.due() == NO_MATCH
    world.now = 200.0
    assert world.quarantine.due() == NO_MATCH
    world.retry(NO_MATCH, "a")
    assert world.quarantine.due() == OTHER
    assert world.quarantine.next_due() == 100.5 + retry_interval("no memory", 1)


def test_intervals_grow_while_it_is_refused_and_begin_again_after_a_success() -> None:
    world = World()
    world.refuse("a", "b", "c", "d", "e")
    for refusals in (2, 3):
        world.now += 1000
        world.retry(NO_MATCH, "a", "b", "c", "d", "e")
        assert world.quarantine.next_due() == world.now + retry_interval("no match", refusals)
    world.now += 1000
    world.retry(NO_MATCH)
    world.now += 1000
    assert len(world.retry(NO_MATCH, "a", "b", "d", "e")) == 2
    assert world.quarantine.next_due() == world.now + retry_interval("no match", 1)


def test_the_least_recently_tried_is_tried_alone_and_more_at_once_as_long_as_they_are_accepted() -> None:
    world = World()
    world.refuse(*"abcdefghij")
    assert world.retry(NO_MATCH, "a") == ["a"]
    assert world.retry(NO_MATCH) == ["b"]
    assert world.retry(NO_MATCH) == ["c", "d"]
    assert world.retry(NO_MATCH, "h") == ["e", "f", "g", "h"]
    assert world.retry(NO_MATCH) == ["i"]
    assert world.retry(NO_MATCH) == ["j", "a"]
    assert world.retry(NO_MATCH) == ["h"]
    assert len(world.quarantine) == 0


def test_a_cause_is_assumed_once_it_is_proven() -> None:
    world = World()
    quarantine = world.quarantine
    for number, key in enumerate("ab", 1):
        assert not quarantine.assume("x", "with affinity")
        world.refuse(key)
        quarantine.prove(NO_MATCH, lambda _: False)
        assert quarantine.assumes == (number == PROVEN)
    assert quarantine.assume("x", "with affinity")
    assert not quarantine.assume("y", "without")
    assert quarantine.reasons["x"] == "a: no match"
    assert "y" not in quarantine


def test_a_cause_is_examined_when_there_are_enough_and_no_more_after() -> None:
    world = World()
    asked: list[object] = []

    def disproved(shape: object) -> bool:
        asked.append(shape)
        return True

    for key in "abcd":
        world.refuse(key)
        world.quarantine.prove(NO_MATCH, disproved)
    assert asked == ["with affinity"]
    assert not world.quarantine.assumes


def test_a_cause_without_a_kind_of_rules_is_never_assumed() -> None:
    world = World()
    world.refuse("a", "b", cause=OTHER)
    world.quarantine.prove(OTHER, lambda _: False)
    assert not world.quarantine.assumes


@pytest.mark.parametrize("end", ["accepted", "released", "cleared"])
def test_a_cause_that_has_ended_is_not_assumed_any_more(end: str) -> None:
    world = World()
    world.refuse("a", "b")
    world.quarantine.prove(NO_MATCH, lambda _: False)
    if end == "accepted":
        world.retry(NO_MATCH)
    elif end == "released":
        world.quarantine.discard("a")
        assert world.quarantine.assumes
        world.quarantine.discard("b")
    else:
        world.quarantine.clear()
    assert not world.quarantine.assumes
    assert not world.quarantine.assume("x", "with affinity")


def test_a_retry_of_a_cause_that_is_gone_notes_nothing() -> None:
    world = World()
    world.quarantine.tried(NO_MATCH, accepted=True, refused=True)
    assert world.quarantine.next_due() is None


def test_leftovers_are_tried_at_growing_intervals_each_in_its_time() -> None:
    now = [100.0]
    left = Leftovers(lambda: now[-1])
    assert left.next_due() is None
    assert left.replace({"set A": "in use"}, ()) == 1
    first = 100.0 + retry_interval("set A", 1)
    assert (left.reasons, left.postponed(), left.next_due()) == (
        {"set A": "in use"},
        {"set A": "in use"},
        first,
    )
    now.append(first)
    assert left.postponed() == {}
    assert left.replace({"set A": "in use", "set B": "busy"}, ()) == 2
    assert left.next_due() == min(first + retry_interval("set A", 2), first + retry_interval("set B", 1))
    assert left.replace({"set A": "in use", "set B": "busy"}, ["set A", "set B"]) == 0
    left.retry()
    assert left.postponed() == {}
    assert left.replace({"set A": "in use"}, ()) == 1
    assert left.next_due() == first + retry_interval("set A", 1)
    assert left.replace({}, ()) == 0
    assert (left.reasons, left.next_due()) == ({}, None)


class Ruleset:
    """A ruleset that counts its commits, unless `unknown`."""

    def __init__(self) -> None:
        self.commits = 5
        self.unknown = False
        self.writes = ForeignWrites(self._read)

    def _read(self) -> RulesetGeneration | None:
        return None if self.unknown else RulesetGeneration((), self.commits)


def test_writes_of_others_count_and_own_ones_do_not() -> None:
    rules = Ruleset()
    assert rules.writes.foreign_writes == 1  # nothing is known at first
    assert rules.writes.foreign_writes == 1
    with rules.writes.writing():
        rules.commits += 1
    assert rules.writes.foreign_writes == 1
    with rules.writes.writing():
        rules.commits += 2
    assert rules.writes.foreign_writes == 2
    rules.commits += 1
    assert rules.writes.foreign_writes == 3
    rules.commits += 1
    with rules.writes.writing():
        rules.commits += 1
    assert rules.writes.foreign_writes == 4


def test_a_ruleset_that_cannot_be_read_counts_as_written_each_time() -> None:
    rules = Ruleset()
    seen = rules.writes.foreign_writes
    rules.unknown = True
    assert rules.writes.foreign_writes == seen + 1
    assert rules.writes.foreign_writes == seen + 2
    with rules.writes.writing():
        pass
    assert rules.writes.foreign_writes == seen + 4


def test_errors_of_one_kind_are_alike_whatever_service_they_are_of() -> None:
    first = 'line 12: "ns1/web:http" KUBE-SVC-ABCDEFGHIJ234567 -d 10.96.0.1/32: no such match'
    other = 'line 7: "ns2/db" KUBE-SVC-ZZZZZZZZZZ234567 -d 10.96.0.9/32: no such match'
    assert error_kind(first) == error_kind(other)
    assert error_kind(first) != error_kind(first.replace("match", "target"))
