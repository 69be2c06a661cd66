"""Writes of several threads of kproxy are told from those of others."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager

from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.kernel.nft.commands import AddChain, AddTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.xtables.types import RulesetGeneration
from tests.backends.strategies import SETTINGS
from tests.kernel.namespace import fresh_network


class Ruleset:
    """A ruleset that counts its commits."""

    def __init__(self) -> None:
        self.commits = 5
        self.writes = ForeignWrites(lambda: RulesetGeneration((), self.commits))
        self.seen = self.writes.foreign_writes


def test_two_writes_at_once_are_both_own() -> None:
    rules = Ruleset()
    with rules.writes.writing():
        with rules.writes.writing():
            rules.commits += 1
        assert rules.writes.foreign_writes == rules.seen
        rules.commits += 1
    assert rules.writes.foreign_writes == rules.seen


def test_a_foreign_write_while_others_run_is_found_when_they_have_ended() -> None:
    rules = Ruleset()
    with rules.writes.writing():
        with rules.writes.writing():
            rules.commits += 1
        rules.commits += 1
        rules.commits += 1
    assert rules.writes.foreign_writes == rules.seen + 1
    assert rules.writes.foreign_writes == rules.seen + 1


def test_a_write_that_changed_nothing_hides_no_later_one() -> None:
    rules = Ruleset()
    with rules.writes.writing():
        pass
    rules.commits += 1
    assert rules.writes.foreign_writes == rules.seen + 1


@given(st.lists(st.sampled_from(["begin", "commit", "end", "look"]), max_size=40))
@settings(SETTINGS, max_examples=100)
def test_own_writes_never_count_however_they_overlap(steps: list[str]) -> None:
    rules = Ruleset()
    running: list[tuple[AbstractContextManager[None, bool | None], bool]] = []
    for step in steps:
        if step == "begin":
            entered: AbstractContextManager[None, bool | None] = rules.writes.writing()
            entered.__enter__()
            running.append((entered, False))
        elif step == "commit" and any(not done for _, done in running):
            place = next(n for n, (_, done) in enumerate(running) if not done)
            running[place] = running[place][0], True
            rules.commits += 1
        elif step == "end" and running:
            running.pop(0)[0].__exit__(None, None, None)
        assert rules.writes.foreign_writes == rules.seen
    for entered, _ in running:
        entered.__exit__(None, None, None)
    assert rules.writes.foreign_writes == rules.seen
    rules.commits += 1
    assert rules.writes.foreign_writes == rules.seen + 1


@fresh_network
def test_threads_that_write_at_the_same_time_are_not_foreign_to_each_other() -> None:
    nft = NetlinkNft()
    watch = ForeignWrites(nft.generation)
    together = threading.Barrier(2)
    seen = watch.foreign_writes

    def write(family: Family) -> int:
        table = f"of-{family.value.lower()}"
        together.wait()
        for number in range(150):
            with watch.writing():
                nft.commit(Transaction(family, table, [AddTable(), AddChain(f"c{number}")]))
        return watch.foreign_writes

    with ThreadPoolExecutor(2) as pool:  # its threads begin in the namespace of this one
        assert list(pool.map(write, Family)) == [seen, seen]
    nft.commit(Transaction(Family.IPV4, "foreign", [AddTable()]))
    assert watch.foreign_writes == seen + 1
