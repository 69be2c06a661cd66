"""Label selectors: what they select, their normal form, and what is refused."""

from typing import Any

import msgspec
import pytest

from kproxy.plan.policy import limits
from kproxy.plan.policy.defects import Defects
from kproxy.plan.policy.rules import pods_peer
from kproxy.plan.policy.selectors import EVERYTHING, Selector, WireSelector, read_selector


def read(plain: dict[str, Any]) -> Selector:
    found, defects = read_any(plain)
    assert not defects
    return found


def read_any(plain: dict[str, Any]) -> tuple[Selector, tuple[str, ...]]:
    defects = Defects()
    return read_selector(msgspec.convert(plain, WireSelector), "spec.podSelector", defects), defects.result()


def expression(key: str, operator: str, *values: str) -> dict[str, Any]:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("selector", "selects", "rejects"),
    [
        ({}, [{}, {"a": "1"}], []),
        ({"matchLabels": None, "matchExpressions": None}, [{}], []),
        ({"matchLabels": {"a": "1", "b": ""}}, [{"a": "1", "b": "", "c": "2"}], [{"a": "1"}, {"b": ""}, {}]),
        (expression("a", "In", "1", "2"), [{"a": "1"}, {"a": "2"}], [{"a": "3"}, {}]),
        (expression("a", "NotIn", "1", "2"), [{"a": "3"}, {}], [{"a": "1"}, {"a": "2"}]),
        (expression("a", "Exists"), [{"a": ""}], [{}, {"b": "1"}]),
        (expression("a", "DoesNotExist"), [{}, {"b": "1"}], [{"a": ""}]),
        (
            {"matchLabels": {"a": "1"}} | expression("b", "NotIn", "2"),
            [{"a": "1"}, {"a": "1", "b": "1"}],
            [{"a": "1", "b": "2"}, {"b": "1"}],
        ),
    ],
)
def test_a_selector_selects(
    selector: dict[str, Any], selects: list[dict[str, str]], rejects: list[dict[str, str]]
) -> None:
    found = read(selector)
    assert all(found.matches(each) for each in selects)
    assert not any(found.matches(each) for each in rejects)


def test_equal_selectors_in_other_notations_are_one() -> None:
    one = read({"matchLabels": {"a": "1"}} | expression("b", "In", "2", "1", "2"))
    other = read(
        {
            "matchExpressions": [
                {"key": "b", "operator": "In", "values": ["1", "2"]},
                {"key": "a", "operator": "In", "values": ["1"]},
            ]
        }
    )
    assert one == other
    assert pods_peer("shop", None, one).name == pods_peer("shop", None, other).name


def test_names_of_pod_sets_differ_by_what_they_select() -> None:
    web, db = read({"matchLabels": {"app": "web"}}), read({"matchLabels": {"app": "db"}})
    peers = [
        pods_peer("shop", None, web),
        pods_peer("other", None, web),
        pods_peer("shop", None, db),
        pods_peer("shop", web, EVERYTHING),
        pods_peer("shop", EVERYTHING, web),
        pods_peer("shop", EVERYTHING, EVERYTHING),
        pods_peer("shop", None, EVERYTHING),
        pods_peer("shop", None, read(expression("app", "Exists"))),
        pods_peer("shop", None, read(expression("app", "DoesNotExist"))),
        pods_peer("shop", None, read(expression("app", "NotIn", "web"))),
    ]
    assert len({each.name for each in peers}) == len(peers)


def test_names_stay_from_release_to_release() -> None:
    """A start compares the kernel's sets with the planned ones by name."""
    assert pods_peer("shop", None, read({"matchLabels": {"app": "web"}})).name == "p-1705e27971e779ae5713"


def test_policies_of_two_namespaces_share_a_set_for_the_same_namespace_selector() -> None:
    web = read({"matchLabels": {"app": "web"}})
    assert pods_peer("a", web, web).name == pods_peer("b", web, web).name


def test_a_namespace_that_is_selected_by_its_name_is_that_namespace() -> None:
    named = read({"matchLabels": {"kubernetes.io/metadata.name": "shop"}})
    assert pods_peer("other", named, EVERYTHING) == pods_peer("shop", None, EVERYTHING)
    either = read(expression("kubernetes.io/metadata.name", "In", "shop", "other"))
    assert pods_peer("other", either, EVERYTHING).namespaces == either


@pytest.mark.parametrize(
    ("selector", "defect"),
    [
        ({"matchLabels": {"": "1"}}, 'spec.podSelector.matchLabels="": is not a label key'),
        ({"matchLabels": {"a b": "1"}}, 'spec.podSelector.matchLabels="a b": is not a label key'),
        ({"matchLabels": {"A.b/c/d": "1"}}, 'spec.podSelector.matchLabels="A.b/c/d": is not a label key'),
        ({"matchLabels": {"/c": "1"}}, 'spec.podSelector.matchLabels="/c": is not a label key'),
        ({"matchLabels": {"x" * 64: "1"}}, f'spec.podSelector.matchLabels="{"x" * 64}": is not a label key'),
        ({"matchLabels": {"a": "-1"}}, 'spec.podSelector.matchLabels[a]="-1": is not a label value'),
        ({"matchLabels": {"a": "1\n"}}, 'spec.podSelector.matchLabels[a]="1\\n": is not a label value'),
        (
            expression("a", "in", "1"),
            (
                'spec.podSelector.matchExpressions[0].operator="in": '
                "must be one of In, NotIn, Exists, DoesNotExist"
            ),
        ),
        (
            expression("a", "In"),
            "spec.podSelector.matchExpressions[0].values=[]: operator In needs at least one",
        ),
        (
            expression("a", "NotIn"),
            "spec.podSelector.matchExpressions[0].values=[]: operator NotIn needs at least one",
        ),
        (
            expression("a", "Exists", "1"),
            'spec.podSelector.matchExpressions[0].values=["1"]: operator Exists allows none',
        ),
        (
            expression("a", "DoesNotExist", "1"),
            'spec.podSelector.matchExpressions[0].values=["1"]: operator DoesNotExist allows none',
        ),
        (
            expression("a", "In", "1", "é"),
            'spec.podSelector.matchExpressions[0].values[1]="\\u00e9": is not a label value',
        ),
        (
            expression("é", "Exists"),
            'spec.podSelector.matchExpressions[0].key="\\u00e9": is not a label key',
        ),
        (
            {"matchLabels": {f"k{n}": "1" for n in range(limits.REQUIREMENTS + 1)}},
            "spec.podSelector=101: more than 100 requirements",
        ),
        (
            expression("a", "In", *(str(n) for n in range(limits.VALUES + 1))),
            "spec.podSelector=1001: more than 1000 values",
        ),
    ],
)
def test_an_invalid_selector_is_named_with_field_and_value(selector: dict[str, Any], defect: str) -> None:
    assert read_any(selector)[1] == (defect,)


@pytest.mark.parametrize("key", ["a", "app.kubernetes.io/name", "x-y.z_1", "a.b-c.d/E_f", "1"])
def test_valid_keys_are_taken(key: str) -> None:
    assert read({"matchLabels": {key: "v"}}).matches({key: "v"})


def test_selectors_in_words() -> None:
    words = str(
        read(
            {
                "matchLabels": {"a": "1"},
                "matchExpressions": [
                    {"key": "b", "operator": "NotIn", "values": ["2"]},
                    {"key": "c", "operator": "In", "values": ["4", "3"]},
                    {"key": "d", "operator": "Exists"},
                    {"key": "e", "operator": "DoesNotExist"},
                    {"key": "f", "operator": "NotIn", "values": ["5", "6"]},
                ],
            }
        )
    )
    assert words == "a=1,b!=2,c in (3, 4),d,!e,f notin (5, 6)"
