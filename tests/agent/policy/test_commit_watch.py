"""A table that another program deletes is made again at once, whatever the time of regular comparisons."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from kproxy.agent import drift_checker
from kproxy.agent.policy.agent import PolicyAgent
from kproxy.agent.policy.commit_watch import CommitWatch
from kproxy.agent.policy.kernel import NftPolicyKernel
from kproxy.backends.policy.names import TABLE
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.commits import Commits
from kproxy.telemetry.metrics import Metrics
from kproxy.telemetry.policy_observer import PolicyObserver
from tests.agent.policy.rig import ON, V4, V6, Rig, cluster
from tests.cli.nodes import do
from tests.kernel.namespace import fresh_network

PATIENCE = 20.0


@contextmanager
def running(*works: object) -> Iterator[None]:
    """Run companions and agents on threads in this network namespace."""
    stop = threading.Event()
    threads = [threading.Thread(target=each.run, args=(stop,)) for each in works]  # type: ignore[attr-defined]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for each in works:
            getattr(each, "wake", lambda: None)()
            if isinstance(each, PolicyAgent):
                each.store.wake()
        for thread in threads:
            thread.join(PATIENCE)
        assert not any(thread.is_alive() for thread in threads)


@fresh_network
def test_only_transactions_are_seen() -> None:
    with Commits() as commits:
        assert not commits.seen()
        do("nft", "add table ip other")
        assert commits.seen()
        do("nft", "list ruleset")
        do("nft", "add table ip other")
        assert not commits.seen()


@fresh_network
def test_a_commit_of_others_leads_to_a_look_while_policies_are_on() -> None:
    looks: list[bool] = []
    looked = threading.Event()

    def look() -> None:
        looks.append(True)
        looked.set()

    watch = CommitWatch(ON, look)
    with running(watch):
        for name in ("first", "second"):
            looked.clear()
            while not looked.is_set():  # the socket may not be there at the first
                do("nft", f"add table ip {name}; delete table ip {name}")
                looked.wait(0.05)
        watch.follow(msgspec.structs.replace(ON, network_policy=False))
    assert looks


def test_a_deleted_table_is_made_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drift_checker, "QUICK_PERIOD", 1000.0)
    _deleted()


@fresh_network
def _deleted() -> None:
    rig = Rig()
    observer = PolicyObserver(Metrics())
    repaired = threading.Event()
    agent = PolicyAgent(ON, (V4, V6), rig.store, NftPolicyKernel({}), observer)
    noted = observer.synced

    def synced(*arguments: object) -> None:
        noted(*arguments)  # type: ignore[arg-type]
        if observer.status("allow").families[V4].drift.repaired:
            repaired.set()

    observer.synced = synced  # type: ignore[method-assign, assignment]
    (watch,) = (each for each in agent.companions if isinstance(each, CommitWatch))
    with running(agent, watch):
        rig.lists(*cluster())
        assert agent.wait_applied(PATIENCE)
        while not repaired.is_set():
            nft_tables.delete(V4, TABLE)
            repaired.wait(0.2)
        assert agent.wait_applied(PATIENCE)
    assert TABLE in nft_tables.tables(V4)
