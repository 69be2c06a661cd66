"""The weights annotation: what it means, and that no text in it can do harm."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.render import render_service
from kproxy.plan.model import EndpointPlan, PortPlan, Protocol, ServicePlan
from kproxy.plan.schedulers import SCHEDULERS, Scheduler, parse_scheduler
from kproxy.plan.weights import WEIGHT_MAX, WeightsError, effective, parse_weights, weight_of

TEXT = '{"pod:web-canary-*": 1, "node:big-*": 40, "zone:eu-1a": 20, "*": 10}'
YAML = "pod:web-canary-*: 1\nnode:big-*: 40\nzone:eu-1a: 20\n'*': 10\n"


@pytest.mark.parametrize("text", [TEXT, YAML], ids=["json", "yaml"])
@pytest.mark.parametrize(
    ("pod", "node", "zone", "weight"),
    [
        ("web-canary-1", "big-1", "eu-1a", 1),
        ("web-1", "big-1", "eu-1a", 40),
        ("web-1", "small-1", "eu-1a", 20),
        ("web-1", "small-1", "eu-1b", 10),
        ("", "", "", 10),
        ("WEB-CANARY-1", "", "", 10),
    ],
)
def test_the_first_selector_that_matches_counts(
    text: str, pod: str, node: str, zone: str, weight: int
) -> None:
    assert weight_of(parse_weights(text), pod=pod, node=node, zone=zone) == weight


def test_what_nothing_matches_weighs_one() -> None:
    assert weight_of(parse_weights('{"pod:a": 5}'), pod="b", node="", zone="") == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[1]", "not a mapping"),
        ('{"pod:a": {}}', "not a mapping"),
        ('{"pods:a": 1}', "is not pod:GLOB"),
        ('{"pod:": 1}', "is not pod:GLOB"),
        ('{"*": -1}', "not an integer"),
        ('{"*": 65536}', "not an integer"),
        ('{"*": 1.5}', "not an integer"),
        ('{"*": true}', "not an integer"),
        ('{"*": "1"}', "not an integer"),
        ('{"*": 1, "*": 2}', "twice"),
        ("{", "neither JSON nor YAML"),
        ("*: 1", "neither JSON nor YAML"),
        ("", "not a mapping"),
        ("[" * 5000, "neither JSON nor YAML"),
        ("x" * 70000, "longer than"),
        ("[" * 4000, "not a mapping"),
    ],
)
def test_bad_text_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(WeightsError, match=reason):
        parse_weights(text)


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        weights = parse_weights(text)
    except WeightsError:
        return
    assert all(0 <= selector.weight <= WEIGHT_MAX for selector in weights)


@pytest.mark.parametrize(
    ("weights", "expected"), [((1, 0, 3), (1, 0, 3)), ((0, 0), (1, 1)), ((), ()), ((0,), (1,))]
)
def test_zeroes_serve_where_there_is_nothing_else(
    weights: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert effective([EndpointPlan("10.0.0.1", 80, weight=w) for w in weights]) == expected


@given(st.lists(st.integers(0, WEIGHT_MAX), min_size=1, max_size=12))
def test_the_rules_give_each_endpoint_its_share(weights: list[int]) -> None:
    endpoints = tuple(EndpointPlan(f"10.0.0.{n}", 80, weight=w) for n, w in enumerate(weights, 1))
    port = PortPlan(
        "ns/a", Protocol.TCP, "10.96.0.1", 80, cluster=endpoints, reachable=endpoints, has_endpoints=True
    )
    rules = render_service(ServicePlan("ns/a", Family.IPV4, ports=(port,)), IptablesConfig(Family.IPV4))
    (chain,) = [text for name, text in rules.chains.items() if name.startswith("KUBE-SVC-")]
    left, shares = 1.0, {}
    for line in chain.splitlines():
        words = line.split()
        chance = float(words[words.index("--probability") + 1]) if "--probability" in words else 1.0
        shares[line.split("-> ")[1].split('"')[0]] = left * chance
        left *= 1 - chance
    assert left == 0
    wanted = effective(endpoints)
    for endpoint, weight in zip(endpoints, wanted, strict=True):
        assert shares.get(endpoint.address_port, 0.0) == pytest.approx(weight / sum(wanted), abs=1e-8)
        assert (endpoint.address_port in shares) == (weight > 0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_is_read_and_printed(name: str) -> None:
    scheduler = parse_scheduler(name)
    assert scheduler.name == name
    assert parse_scheduler(str(scheduler)) == scheduler


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("sh", Scheduler("sh", fallback=True)),
        ("sh,sh-port", Scheduler("sh", hash_port=True)),
        ("mh", Scheduler("mh", hash_port=True)),
        ("mh, mh-fallback, mh-port", Scheduler("mh", fallback=True, hash_port=True)),
    ],
)
def test_flags_are_those_of_ipvsadm(text: str, expected: Scheduler) -> None:
    assert parse_scheduler(text) == expected


@pytest.mark.parametrize("text", ["", "fastest", "rr,sh-port", "sh,mh-port", "RR"])
def test_other_schedulers_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"not one of|takes no flags|flags of"):
        parse_scheduler(text)
