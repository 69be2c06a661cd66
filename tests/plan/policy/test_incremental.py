"""However objects come, change and go, the tables are those of a planner that gets all of them at once."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction, PolicyTable, Touched
from kproxy.plan.policy.planner import PolicyPlanner
from tests.plan.policy import kernel
from tests.plan.policy.objects import (
    ADDRESSES,
    FAMILIES,
    LABELS,
    NAMESPACES,
    NODE,
    SPECS,
    Json,
    examples,
    key,
    namespace,
    namespaces_of,
    pod_strategy,
    pods_of,
    policies_of,
    policy,
)

Change = tuple[str, str, Json | None]
"""Kind, key, and the object or None if it is gone."""

_DEFECTIVE = st.sampled_from(
    [
        {"podSelector": {}, "ingres": []},
        {"podSelector": {"matchLabels": {"x": "1"}}, "policyTypes": ["Egress"], "egress": [{"to": [{}]}]},
        {"podSelector": {"matchExpressions": [{"key": "x", "operator": "Equals"}]}},
    ]
)
_PODS = st.sampled_from(range(6)).flatmap(
    lambda n: pod_strategy(
        f"p{n}",
        # Few addresses, so that pods claim those of others.
        st.sampled_from([(), ADDRESSES[0], ADDRESSES[n], ADDRESSES[n], ADDRESSES[n + 1][:1]]),
        created=st.sampled_from(["2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", None]),
        deleted=st.sampled_from([None, None, "2026-01-02T00:00:00Z"]),
    )
)
_POLICIES = st.builds(
    lambda n, ns, spec: policy(f"n{n}", ns, **spec),
    st.integers(0, 4),
    st.sampled_from(NAMESPACES),
    st.one_of(SPECS, SPECS, SPECS, _DEFECTIVE),
)
_OBJECTS = st.one_of(
    st.tuples(st.just("pods"), _PODS),
    st.tuples(st.just("policies"), _POLICIES),
    st.tuples(st.just("namespaces"), st.builds(namespace, st.sampled_from(NAMESPACES), LABELS)),
)
_CHANGES = st.tuples(_OBJECTS, st.sampled_from([True, True, True, False])).map(
    lambda found: (found[0][0], key(found[0][1]), found[0][1] if found[1] else None)
)
_READ: dict[str, Callable[[list[Json]], Mapping[str, Any]]] = {
    "pods": pods_of,
    "namespaces": namespaces_of,
    "policies": policies_of,
}


def _given(changes: list[Change]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _READ}
    for kind, name, plain in changes:
        found[kind][name] = None if plain is None else _READ[kind]([plain])[name]
    return found


def _full(objects: dict[tuple[str, str], Json | None]) -> PolicyPlanner:
    changes: list[Change] = [
        (kind, name, plain) for (kind, name), plain in objects.items() if plain is not None
    ]
    return PolicyPlanner.full(NODE, FAMILIES, **_given(changes))


@examples(100)
@given(updates=st.lists(st.lists(_CHANGES, min_size=1, max_size=5), min_size=1, max_size=8))
def test_every_order_of_changes_leads_to_the_tables_of_all_objects_at_once(
    updates: list[list[Change]],
) -> None:
    planner = PolicyPlanner(NODE, FAMILIES)
    objects: dict[tuple[str, str], Json | None] = {}
    for changes in updates:
        before = copy.deepcopy(dict(planner.tables))
        touched = planner.update(**_given(changes))
        objects |= {(kind, name): plain for kind, name, plain in changes}
        full = _full(objects)
        assert planner.tables == full.tables
        assert planner.problems == full.problems
        for family in Family:
            kernel.check(planner.tables[family], family)
            assert_touched(before[family], planner.tables[family], touched[family])
        check_subjects(planner)
        for own in ADDRESSES[:3]:
            for other in ADDRESSES[:3]:
                flow = (Protocol.TCP, own[0], other[0], 80)
                assert planner.judge(*flow) == full.judge(*flow)
        for kind, name in objects:
            if kind == "pods":
                assert planner.policies_of(name) == full.policies_of(name)
            if kind == "policies":
                assert planner.pods_of(name) == full.pods_of(name)
    planner.update(**_given([(kind, name, None) for kind, name in objects]))
    assert planner.tables == {family: PolicyTable() for family in FAMILIES}
    assert planner.problems == {}
    assert _kept(planner) == 0


def check_subjects(planner: PolicyPlanner) -> None:
    """Identities know their addresses on this node, and nothing of policies without one."""
    holders = planner._book.holders
    for identity in (each for name in NAMESPACES for each in planner._identities.within(name)):
        addresses = {address for family in Family for address in identity.addresses(family)}
        assert all(holders[address].identity is identity for address in addresses)
        subject = identity.subject
        assert (subject.addresses if subject else set()) == {
            each for each in addresses if holders[each].local
        }
        assert subject is None or subject.addresses


def _kept(planner: PolicyPlanner) -> int:
    """Entries of indexes; none may stay without objects."""
    owners = (planner, planner._book, planner._identities)
    indexes = [value for owner in owners for value in vars(owner).values() if isinstance(value, (dict, set))]
    tables = [value for table in planner._families.values() for value in vars(table).values()]
    indexes += [value for value in tables if isinstance(value, (dict, set))]
    return sum(len(each) for each in indexes if each is not planner._families)


def assert_touched(before: PolicyTable, after: PolicyTable, touched: Touched) -> None:
    """Everything that differs is named, and every name is one that is or was."""
    assert _differing(before.groups, after.groups) == touched.groups
    assert _differing(before.ranges, after.ranges) == touched.ranges
    members = _differing(before.peers, after.peers) | _differing(before.named, after.named)
    assert members <= touched.members <= {*before.peers, *after.peers, *before.named, *after.named}
    addresses = _differing(before.local, after.local)
    for direction in Direction:
        addresses |= _differing(before.isolated[direction], after.isolated[direction])
    assert addresses == touched.addresses


def _differing(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


@examples(40)
@given(changes=st.lists(_CHANGES, min_size=2, max_size=12), data=st.data())
def test_the_order_within_and_between_updates_does_not_matter(changes: list[Change], data: Any) -> None:
    latest = {(kind, name): (kind, name, plain) for kind, name, plain in changes if plain is not None}
    shuffled = data.draw(st.permutations(list(latest.values())))
    one, all_at_once = PolicyPlanner(NODE, FAMILIES), PolicyPlanner(NODE, FAMILIES)
    for change in shuffled:
        one.update(**_given([change]))
    all_at_once.update(**_given(list(latest.values())))
    assert one.tables == all_at_once.tables


@examples(40)
@given(changes=st.lists(_CHANGES, max_size=10))
def test_repeating_objects_touches_nothing(changes: list[Change]) -> None:
    planner = PolicyPlanner(NODE, FAMILIES)
    planner.update(**_given(changes))
    before = msgspec.msgpack.encode(sorted(map(repr, planner.tables.items())))
    latest = {(kind, name): (kind, name, plain) for kind, name, plain in changes}
    assert not any(planner.update(**_given(list(latest.values()))).values())
    assert msgspec.msgpack.encode(sorted(map(repr, planner.tables.items()))) == before
