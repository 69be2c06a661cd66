import pytest

from kproxy_lab.apiserver import ApiError, ResourceTable
from kproxy_lab.apiserver.selection import field_value, parse_fields, parse_labels

LABELS = {"app": "web", "tier": "front", "example.com/x": "", "v": "1.2"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("app=web", True),
        ("app==web", True),
        ("app=db", False),
        ("app!=db", True),
        ("app!=web", False),
        ("missing!=x", True),
        ("app", True),
        ("missing", False),
        ("!missing", True),
        ("!app", False),
        ("!service.kubernetes.io/headless", True),
        ("app in (web,db)", True),
        ("app in (db)", False),
        ("app notin (db, other)", True),
        ("app notin (web)", False),
        ("missing notin (x)", True),
        ("example.com/x=", True),
        ("app=web,tier in (front, back),!missing", True),
        ("app=web, tier=back", False),
        ("v=1.2", True),
    ],
)
def test_label_selectors(text: str, expected: bool) -> None:
    assert all(one.matches(LABELS) for one in parse_labels(text)) is expected


@pytest.mark.parametrize("text", ["app in web", "=x", "a=b=c", "app in (a", "-bad", "a,,b", "a>1", "a=$(x)"])
def test_label_selectors_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parse_labels(text)
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("text", "expected"),
    [("spec.clusterIP!=None", [("spec.clusterIP", False, "None")]),
     ("metadata.name=a,spec.type==NodePort", [("metadata.name", True, "a"), ("spec.type", True, "NodePort")]),
     ("", [])],
)  # fmt: skip
def test_field_selectors(text: str, expected: list[tuple[str, bool, str]]) -> None:
    found = parse_fields(text, ResourceTable().named("services"))
    assert [(one.key, one.wanted, one.value) for one in found] == expected


def test_an_unknown_field_label_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match=r'"spec\.selector" is not a known field selector') as caught:
        parse_fields("spec.selector=x", ResourceTable().named("services"))
    assert caught.value.code == 400


@pytest.mark.parametrize(
    ("obj", "value"),
    [
        ({"spec": {"a": "x"}}, "x"),
        ({"spec": {"a": True}}, "true"),
        ({"spec": {"a": 5}}, "5"),
        ({"spec": []}, ""),
        ({}, ""),
        ({"spec": {"a": None}}, ""),
        ({"spec": {"a": {"b": 1}}}, ""),
    ],
)
def test_field_values_of_anything(obj: dict[str, object], value: str) -> None:
    assert field_value(obj, "spec.a") == value


@pytest.mark.parametrize(
    ("name", "api_version"),
    [("Service", "v1"), ("svc", "v1"), ("endpointslices", "discovery.k8s.io/v1"), ("Event", "v1"),
     ("Event.events.k8s.io", "events.k8s.io/v1"), ("ServiceCIDR", "networking.k8s.io/v1")],
)  # fmt: skip
def test_resources_are_found_by_the_names_people_use(name: str, api_version: str) -> None:
    assert ResourceTable().named(name).api_version == api_version
