"""The objects of NetworkPolicies: what counts as a change, whom it wakes, and that services never see it."""

import threading
from types import SimpleNamespace

import pytest

from kproxy.state import store as module
from kproxy.state.kinds import KINDS, POLICY_KINDS, Kind
from kproxy.state.problems import Problem
from kproxy.state.store import ObjectStore
from tests.state.policy_objects import namespace, pod, policy


def listed() -> ObjectStore:
    """A store in which the first list of each kind has arrived, and everything was read."""
    store = ObjectStore(KINDS)
    for kind in KINDS:
        store.replace(kind, (), ())
    store.policy_changes()
    store.changed_services()
    return store


def test_nothing_is_complete_before_the_first_list_of_each_kind() -> None:
    store = ObjectStore(KINDS)
    store.replace(Kind.POD, [pod("a")], ())
    store.replace(Kind.NETWORK_POLICY, [policy("deny")], ())
    first = store.policy_changes()
    assert (first.complete, set(first.pods), set(first.policies)) == (False, {"shop/a"}, {"shop/deny"})
    store.replace(Kind.NAMESPACE, (), ())
    second = store.policy_changes()
    assert second.complete
    assert not second


def test_a_change_is_read_once_with_the_object_or_none() -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a"))
    store.upsert(Kind.POD, pod("b", "10.1.0.2"))
    store.upsert(Kind.NAMESPACE, namespace("shop", team="x"))
    store.upsert(Kind.NETWORK_POLICY, policy("deny", {"podSelector": {}}))
    store.delete(Kind.POD, "shop/b")
    changes = store.policy_changes()
    assert changes.pods == {"shop/a": pod("a"), "shop/b": None}
    assert changes.namespaces == {"shop": namespace("shop", team="x")}
    assert changes.policies == {"shop/deny": policy("deny", {"podSelector": {}})}
    assert changes.complete
    assert not store.policy_changes()


def test_what_no_policy_needs_is_no_change() -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a"))
    store.policy_changes()
    store.upsert(Kind.POD, pod("a", version="2", conditions=[{"type": "Ready", "status": "True"}]))
    store.delete(Kind.POD, "shop/unknown")
    store.replace(Kind.POD, [pod("a", version="3")], ())
    assert store.policy_pending_since is None
    assert not store.policy_changes()
    store.upsert(Kind.POD, pod("a", labels={"app": "db"}))
    assert store.policy_changes().pods == {"shop/a": pod("a", labels={"app": "db"})}


def test_a_list_removes_what_it_lacks_but_not_what_it_could_not_read() -> None:
    store = listed()
    store.replace(Kind.NETWORK_POLICY, [policy("a"), policy("b"), policy("c")], ())
    store.policy_changes()
    store.replace(Kind.NETWORK_POLICY, [policy("a")], ["shop/b"])
    assert store.policy_changes().policies == {"shop/c": None}


@pytest.mark.parametrize(
    "left", [pod("a", phase="Succeeded"), pod("a", phase="Failed"), pod("a", hostNetwork=True)]
)
def test_a_pod_without_an_address_of_its_own_is_gone(left: object) -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a"))
    store.policy_changes()
    store.upsert(Kind.POD, left)  # type: ignore[arg-type]
    assert store.policy_changes().pods == {"shop/a": None}
    store.upsert(Kind.POD, left)  # type: ignore[arg-type]
    assert not store.policy_changes()


def test_a_pod_that_has_no_address_yet_is_kept() -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a", ""))
    found = store.policy_changes().pods["shop/a"]
    assert found is not None
    assert found.addresses == ()


def test_services_neither_see_these_changes_nor_wait_for_their_lists() -> None:
    store = ObjectStore(KINDS)
    for kind in KINDS:
        if not kind.for_policies:
            store.replace(kind, (), ())
    assert store.ready
    assert store.missing == frozenset()
    store.changed_services()
    store.take_all(["IPv4"])
    store.commit({"IPv4": ()})
    before = (store.changed, store.changed_at, store.pending_since, store.incomplete_since)
    for kind in POLICY_KINDS:
        store.replace(kind, (), ())
    store.upsert(Kind.POD, pod("a"))
    store.upsert(Kind.NETWORK_POLICY, policy("deny"))
    store.delete(Kind.POD, "shop/a")
    assert before == (False, store.changed_at, None, None)
    assert (store.changed, store.changed_at, store.pending_since, store.incomplete_since) == before


def wakes(store: ObjectStore) -> str:
    """Whose loop would go on now."""
    loops = {"services": store._wake, "policies": store._policy_wake}
    return " ".join(name for name, event in loops.items() if event.is_set())


def test_a_change_wakes_only_its_own_loop() -> None:
    store = listed()
    store.wait(0)
    store.policy_wait(0)
    assert wakes(store) == ""
    store.upsert(Kind.POD, pod("a"))
    assert wakes(store) == "policies"
    store.policy_wait(None)
    store.upsert(Kind.POD, pod("a"))
    assert wakes(store) == ""
    store.policy_wake()
    assert wakes(store) == "policies"
    store.policy_wait(None)
    store.wake()
    assert wakes(store) == "services policies"


def test_the_end_of_a_first_list_wakes_even_if_it_is_empty() -> None:
    store = ObjectStore(())
    store.replace(Kind.NAMESPACE, (), ())
    assert wakes(store) == "policies"


def test_a_wait_ends_when_an_object_arrives() -> None:
    store = listed()
    store.policy_wait(0)
    thread = threading.Thread(target=store.policy_wait, args=(None,), daemon=True)
    thread.start()
    store.upsert(Kind.POD, pod("a"))
    thread.join(30)
    assert not thread.is_alive()


def pending(store: ObjectStore) -> float | None:
    return store.policy_pending_since


def test_the_age_is_that_of_the_oldest_unread_change(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0], time=lambda: 0.0))
    store = listed()
    now[0] = 5.0
    store.upsert(Kind.POD, pod("a"))
    now[0] = 7.0
    store.upsert(Kind.POD, pod("b"))
    assert pending(store) == 5.0
    assert store.policy_changes().since == 5.0
    assert pending(store) is None
    assert store.policy_changes().since is None


def test_a_reader_that_begins_anew_gets_everything() -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a"))
    store.upsert(Kind.POD, pod("b"))
    store.upsert(Kind.NAMESPACE, namespace())
    store.policy_changes()
    store.delete(Kind.POD, "shop/b")
    everything = store.policy_changes(everything=True)
    assert everything.pods == {"shop/a": pod("a")}
    assert everything.namespaces == {"shop": namespace()}
    assert not store.policy_changes()


def test_a_kind_that_is_not_watched_any_more_is_forgotten() -> None:
    store = listed()
    store.upsert(Kind.POD, pod("a"))
    store.reject(Kind.POD, "shop/b", Problem("Pod shop/b", "spec", "1", "not an object"))
    store.policy_changes()
    store.forget(Kind.POD)
    assert store.policy_pending_since is None
    changes = store.policy_changes()
    assert (changes.complete, changes.pods) == (False, {"shop/a": None})
    assert (store.objects(Kind.POD), store.rejected()) == ({}, [])
    store.replace(Kind.POD, (), ())
    assert store.policy_changes().complete
