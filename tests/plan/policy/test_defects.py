"""A policy that cannot be read in full closes its pods and no others, and is named with field and value."""

import json
from typing import Any

import msgspec
import pytest

from kproxy.plan.model import Protocol
from kproxy.plan.policy import limits
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.spec import read_policy
from tests.plan.policy.objects import Json, ingress, labels, planner, pod, policies_of, policy, read, source

BOTH = frozenset(Direction)
INGRESS = frozenset({Direction.INGRESS})


def block(cidr: object, *excepts: object) -> Json:
    return source(ipBlock={"cidr": cidr, "except": list(excepts)} if excepts else {"cidr": cidr})


CIDR = "spec.ingress[0].from[0].ipBlock.cidr"
EXCEPT = "spec.ingress[0].from[0].ipBlock.except[0]"
PORT = "spec.ingress[0].ports[0]"
DEFECTS: list[tuple[object, str]] = [
    ([], "spec=[]: Expected `object`, got `array`"),
    ("x", 'spec="x": Expected `object`, got `str`'),
    ({"podSelector": {}, "ingres": []}, "spec.ingres=[]: unknown field"),
    ({"podSelector": []}, "spec.podSelector=[]: Expected `object | null`, got `array`"),
    ({"podSelector": {"app": "web"}}, 'spec.podSelector.app="web": unknown field'),
    (
        {"podSelector": {"matchLabels": {"a": 1}}},
        'spec.podSelector.matchLabels[...]={"a": 1}: Expected `str`, got `int`',
    ),
    (
        {"podSelector": {"matchExpressions": [{"operator": "Exists"}]}},
        "spec.podSelector.matchExpressions[0].key=null: is required",
    ),
    ({"policyTypes": ["ingress"]}, 'spec.policyTypes=["ingress"]: only Ingress and Egress are known'),
    (
        {"policyTypes": ["Ingress"] * 3},
        'spec.policyTypes=["Ingress", "Ingress", "Ingress"]: only Ingress and Egress are known',
    ),
    ({"policyTypes": "Ingress"}, 'spec.policyTypes="Ingress": Expected `array | null`, got `str`'),
    ({"ingress": {}}, "spec.ingress={}: Expected `array | null`, got `object`"),
    ({"ingress": [None]}, "spec.ingress[0]=null: Expected `object`, got `null`"),
    (ingress(to=[]), "spec.ingress[0].to=[]: unknown field"),
    ({"egress": [{"from": []}]}, "spec.egress[0].from=[]: unknown field"),
    (source(), "spec.ingress[0].from[0]={}: must have podSelector, namespaceSelector or ipBlock"),
    (
        source(podSelector=None),
        "spec.ingress[0].from[0]={}: must have podSelector, namespaceSelector or ipBlock",
    ),
    (source(serviceSelector={}), "spec.ingress[0].from[0].serviceSelector={}: unknown field"),
    (
        source(ipBlock={"cidr": "10.0.0.0/8"}, podSelector={}),
        "spec.ingress[0].from[0].podSelector={}: not allowed with ipBlock",
    ),
    (
        source(ipBlock={"cidr": "10.0.0.0/8"}, namespaceSelector=labels(a="1")),
        'spec.ingress[0].from[0].namespaceSelector={"matchLabels": {"a": "1"}}: not allowed with ipBlock',
    ),
    (
        source(podSelector={"matchExpressions": [{"key": "a", "operator": "Gt", "values": ["1"]}]}),
        (
            'spec.ingress[0].from[0].podSelector.matchExpressions[0].operator="Gt": '
            "must be one of In, NotIn, Exists, DoesNotExist"
        ),
    ),
    (source(ipBlock={}), f"{CIDR}=null: is required"),
    (block("10.0.0.0/33"), f'{CIDR}="10.0.0.0/33": prefix length 33 is out of range for IPv4'),
    (block("10.0.0.1"), f'{CIDR}="10.0.0.1": not a CIDR'),
    (block("fd00::/129"), f'{CIDR}="fd00::/129": prefix length 129 is out of range for IPv6'),
    (block("web"), f'{CIDR}="web": not a CIDR'),
    (block(10), f"{CIDR}=10: Expected `str`, got `int`"),
    (block("10.0.0.0/8", "10.0.0.0"), f'{EXCEPT}="10.0.0.0": not a CIDR'),
    (block("10.0.0.0/8", "11.0.0.0/16"), f'{EXCEPT}="11.0.0.0/16": must be strictly within cidr 10.0.0.0/8'),
    (block("10.0.0.0/8", "10.0.0.0/8"), f'{EXCEPT}="10.0.0.0/8": must be strictly within cidr 10.0.0.0/8'),
    (block("10.0.0.0/8", "0.0.0.0/0"), f'{EXCEPT}="0.0.0.0/0": must be strictly within cidr 10.0.0.0/8'),
    (block("10.0.0.0/8", "fd00::/64"), f'{EXCEPT}="fd00::/64": must be strictly within cidr 10.0.0.0/8'),
    (ingress(ports=[{"protocol": "tcp"}]), f'{PORT}.protocol="tcp": must be one of TCP, UDP, SCTP'),
    (ingress(ports=[{"protocol": "ICMP"}]), f'{PORT}.protocol="ICMP": must be one of TCP, UDP, SCTP'),
    (ingress(ports=[{"port": 0}]), f"{PORT}.port=0: must be 1 to 65535"),
    (ingress(ports=[{"port": 65536}]), f"{PORT}.port=65536: must be 1 to 65535"),
    (ingress(ports=[{"port": -1}]), f"{PORT}.port=-1: must be 1 to 65535"),
    (ingress(ports=[{"port": 80.5}]), f"{PORT}.port=80.5: Expected `int | str | null`, got `float`"),
    (ingress(ports=[{"port": True}]), f"{PORT}.port=true: Expected `int | str | null`, got `bool`"),
    (ingress(ports=[{"port": "80"}]), f'{PORT}.port="80": is not a port name'),
    (ingress(ports=[{"port": ""}]), f'{PORT}.port="": is not a port name'),
    (ingress(ports=[{"port": "a--b"}]), f'{PORT}.port="a--b": is not a port name'),
    (ingress(ports=[{"port": "Web"}]), f'{PORT}.port="Web": is not a port name'),
    (ingress(ports=[{"port": "x" * 16}]), f'{PORT}.port="{"x" * 16}": is not a port name'),
    (ingress(ports=[{"port": "web\n"}]), f'{PORT}.port="web\\n": is not a port name'),
    (ingress(ports=[{"endPort": 90}]), f"{PORT}.endPort=90: needs a number as port"),
    (ingress(ports=[{"port": "web", "endPort": 90}]), f"{PORT}.endPort=90: needs a number as port"),
    (ingress(ports=[{"port": 80, "endPort": 79}]), f"{PORT}.endPort=79: is less than port 80"),
    (ingress(ports=[{"port": 80, "endPort": 65536}]), f"{PORT}.endPort=65536: must be 1 to 65535"),
    (ingress(ports=[{"port": 80, "name": "x"}]), f'{PORT}.name="x": unknown field'),
    (ingress(ports=[None]), f"{PORT}=null: Expected `object`, got `null`"),
]


@pytest.mark.parametrize(("spec", "defect"), DEFECTS, ids=[defect for _, defect in DEFECTS])
def test_a_defect_is_named_with_field_and_value(spec: object, defect: str) -> None:
    found = read(spec)
    assert found.problems == (defect,)
    assert (found.ingress, found.egress) == ((), ())


def test_several_defects_are_all_named() -> None:
    found = read(
        {
            "podSelector": {},
            "ingress": [{"ports": [{"port": 0}, {"protocol": "X"}], "from": [{}]}],
            "egress": [{"to": [{"ipBlock": {"cidr": "x"}}]}],
        }
    )
    assert [each.partition("=")[0] for each in found.problems] == [
        "spec.ingress[0].ports[0].port",
        "spec.ingress[0].ports[1].protocol",
        "spec.ingress[0].from[0]",
        "spec.egress[0].to[0].ipBlock.cidr",
    ]


def test_many_defects_are_counted() -> None:
    found = read(ingress(ports=[{"port": 0 - n} for n in range(limits.DEFECTS + 5)]))
    assert len(found.problems) == limits.DEFECTS + 1
    assert found.problems[-1] == "(others)=5: further defects are not listed"


@pytest.mark.parametrize(
    ("spec", "selects_all", "directions"),
    [
        ({"podSelector": labels(app="web"), "ingress": [{"ports": [{"port": 0}]}]}, False, INGRESS),
        ({"podSelector": labels(app="web"), "ingress": [{"x": 1}]}, False, INGRESS),
        ({"podSelector": labels(app="web"), "egress": [{"ports": [{"port": 0}]}]}, False, BOTH),
        ({"podSelector": labels(app="web"), "egress": [{"x": 1}]}, False, BOTH),
        ({"podSelector": labels(app="web"), "ingress": [{"x": 1}], "egress": None}, False, INGRESS),
        (
            {"podSelector": labels(app="web"), "policyTypes": ["Egress"], "egress": [{"x": 1}]},
            False,
            {"egress"},
        ),
        ({"podSelector": labels(app="web"), "policyTypes": ["Egress"], "egres": []}, False, {"egress"}),
        ({"podSelector": labels(app="web"), "egres": []}, False, BOTH),
        ({"podSelector": labels(app="web"), "policyTypes": ["Egres"]}, False, BOTH),
        ({"podSelector": labels(app="web"), "policyTypes": ["Egres"], "x": 1}, False, BOTH),
        ({"podSelector": labels(app="web"), "policyTypes": "Egress"}, False, BOTH),
        ({"podSelector": labels(app="web"), "policyTypes": [1]}, False, BOTH),
        ({"podSelector": labels(app="web"), "policyTypes": [], "ingress": 1}, False, INGRESS),
        ({"podSelector": labels(app="web"), "egress": {}}, False, BOTH),
        ({"podSelector": {"app": "web"}}, True, INGRESS),
        ({"podSelector": {"matchLabels": {"app": "-"}}}, True, INGRESS),
        ({"podSelector": {"matchLabels": {"app": "-"}}, "x": 1}, True, BOTH),
        ({"podSelector": "web", "policyTypes": ["Ingress"]}, True, INGRESS),
        ({"x": 1}, True, BOTH),
        ("x", True, BOTH),
        ([], True, BOTH),
    ],
)
def test_what_can_be_read_says_which_pods_and_directions_are_closed(
    spec: object, selects_all: bool, directions: set[str]
) -> None:
    found = read(spec)
    assert found.problems
    assert found.selector.matches({"app": "web"})
    assert found.selector.matches({"app": "db"}) is selects_all
    assert found.directions == directions


_DEEP = b"[" * 100_000 + b"]" * 100_000


@pytest.mark.parametrize(
    "spec",
    [
        b'{"x": %s}' % _DEEP,
        b'{"podSelector": %s}' % _DEEP,
        _DEEP,
        b'{"podSelector": {"matchLabels": {"a": "\xff"}}}',
        b'{"podSelector": {"matchLabels": {"a": "\\ud800"}}}',
        b'{"\xff": 1}',
    ],
    ids=["unknown field", "selector", "spec", "no UTF-8", "half a character", "no UTF-8 in a name"],
)
def test_a_spec_that_cannot_be_decoded_closes_the_namespace(spec: bytes) -> None:
    """The spec is not decoded before, so that its policy is known by name."""
    (plain,) = policies_of([policy("web")]).values()
    assert plain is not None
    found = read_policy(msgspec.structs.replace(plain, spec=msgspec.Raw(spec)))
    assert len(found.problems) == 1
    assert found.problems[0].startswith("spec")
    assert found.directions == BOTH
    assert found.selector.matches({})


def closed(spec: object) -> Any:
    web, db, other = (
        pod("web", "10.0.0.1", labels={"app": "web"}),
        pod("db", "10.0.0.2", labels={"app": "db"}),
        pod("other", "10.0.0.3", namespace="other"),
    )
    bad = {"metadata": {"name": "bad", "namespace": "shop"}, "spec": spec}
    everything = policy("all", podSelector=labels(app="db"), ingress=[{}])
    return planner([web, db, other], [bad, everything])


def test_a_policy_with_a_defect_closes_its_pods_and_no_others() -> None:
    found = closed({"podSelector": labels(app="web"), "ingress": [{"from": [{}]}]})
    judged = found.judge(Protocol.TCP, "10.0.0.3", "10.0.0.1", 80)
    assert not judged.allowed
    assert judged.by[-1].closed == ("shop/bad",)
    assert judged.reason == (
        "ingress of shop/web is isolated by shop/bad: shop/bad cannot be obeyed, so nothing is allowed"
    )
    assert found.judge(Protocol.TCP, "10.0.0.1", "10.0.0.3", 80).allowed
    assert found.judge(Protocol.TCP, "10.0.0.3", "10.0.0.2", 80).allowed
    assert dict(found.problems) == {
        "shop/bad": ("spec.ingress[0].from[0]={}: must have podSelector, namespaceSelector or ipBlock",)
    }


def test_another_policy_still_allows_what_it_allows() -> None:
    found = closed({"podSelector": [], "policyTypes": ["Ingress", "Egress"]})
    assert found.judge(Protocol.TCP, "10.0.0.3", "10.0.0.2", 80).allowed
    assert not found.judge(Protocol.TCP, "10.0.0.2", "10.0.0.3", 80).allowed


def test_a_problem_ends_with_the_defect_and_with_the_policy() -> None:
    found = closed({"podSelector": labels(app="web"), "ingress": [{"from": [{}]}]})
    found.update({}, {}, policies_of([policy("bad", podSelector=labels(app="web"), ingress=[{}])]))
    assert found.problems == {}
    assert found.judge(Protocol.TCP, "10.0.0.3", "10.0.0.1", 80).allowed
    found.update({}, {}, policies_of([policy("bad", x=1)]))
    assert list(found.problems) == ["shop/bad"]
    found.update({}, {}, {"shop/bad": None})
    assert found.problems == {}


def test_a_text_of_a_tenant_cannot_break_out_of_its_line() -> None:
    (problem,) = read({"podSelector": {}, "in\ngress\u202e": json.dumps({"a": "\x1b[2J"})}).problems
    assert problem.isprintable()
