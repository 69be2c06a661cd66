"""Whatever the spec of a policy is, it is read or named, and closes no pods of others."""

import copy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tests.plan.policy.objects import (
    SPECS,
    Json,
    examples,
    planner,
    pod,
    read,
)

_TEXTS = st.one_of(
    st.text(max_size=3),
    st.sampled_from(["Ingress", "TCP", "web", "10.0.0.0/8", "::/0", "fd00::/8", "In", "Exists", "a", "app"]),
)
_SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2**70), st.floats(allow_nan=False, allow_infinity=False), _TEXTS
)
_FIELDS = st.sampled_from(
    [
        *(
            "podSelector",
            "ingress",
            "egress",
            "policyTypes",
            "from",
            "to",
            "ports",
            "port",
            "endPort",
            "protocol",
        ),
        *(
            "namespaceSelector",
            "ipBlock",
            "cidr",
            "except",
            "matchLabels",
            "matchExpressions",
            "key",
            "operator",
        ),
        *("values", "app", "other"),
    ]
)
_JSON = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_FIELDS, inner, max_size=4),
    max_leaves=12,
)


@examples(200)
@given(spec=st.dictionaries(_FIELDS, _JSON, max_size=4) | _JSON)
def test_any_json_is_read_or_named(spec: object) -> None:
    found = read(spec)
    assert all(each.isprintable() for each in found.problems)
    if found.problems:
        assert (found.ingress, found.egress) == ((), ())
        assert found.directions
    elif spec is not None:
        assert isinstance(spec, dict)
        assert spec.keys() <= {"podSelector", "ingress", "egress", "policyTypes"}


@examples(60)
@given(spec=SPECS, path=st.lists(st.integers(0, 9), max_size=6), value=_SCALARS)
def test_a_valid_spec_with_one_changed_value_is_read_or_closed(
    spec: Json, path: list[int], value: object
) -> None:
    changed = copy.deepcopy(spec)
    place: Any = changed
    for step in path:
        if isinstance(place, dict) and place:
            at: Any = sorted(place)[step % len(place)]
        elif isinstance(place, list) and place:
            at = step % len(place)
        else:
            break
        if not isinstance(place[at], (dict, list)) or step > 7:
            place[at] = value
            break
        place = place[at]
    found = planner(
        [pod("web", "10.0.0.1")], [{"metadata": {"name": "p", "namespace": "shop"}, "spec": changed}]
    )
    assert found.problems.keys() <= {"shop/p"}
    if found.problems:
        assert not any(group.rules for table in found.tables.values() for group in table.groups.values())
