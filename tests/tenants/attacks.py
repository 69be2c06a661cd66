"""The attacks: the rows of issue 15's table that are made of objects alone. Each names its sizes.

`prepare` writes what stands before the attack, `strike` does the harm while the victim changes. A size is
the keyword arguments of both: small ones for every run, full ones for KPROXY_TENANTS=all.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tests.tenants.attacker import Attacker
from tests.tenants.objects import JSON, endpoint, outside_ips, pod_ips, ports, service, slice_of, slices_of

Size = Mapping[str, int]
Step = Callable[..., None]


def nothing(attacker: Attacker, **size: int) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Attack:
    """`small` and `full` are its sizes; `title` names it in the table of results."""

    title: str
    strike: Step
    small: Size
    full: Size
    prepare: Step = nothing


def weights(attacker: Attacker, *, ports_: int, outside: int) -> None:
    """Weights of 1 : 1022 at many frontends: slots times frontends."""
    listed = ports(ports_)
    attacker.write(
        service(
            "weights",
            attacker.number(),
            listed,
            annotations={"kproxy.io/weights": json.dumps({"pod:light": 1, "*": 1022})},
            externalIPs=outside_ips(outside),
        ),
        slice_of("weights", [endpoint("10.128.0.1", pod="light"), endpoint("10.128.0.2")], listed),
    )


RIVALS = 3


def _rivals(outside: int, ports_: int) -> Iterator[JSON]:
    for n in range(RIVALS):
        listed = ports(ports_)
        yield service(f"rival-{n}", 900 + n, listed, externalIPs=outside_ips(outside))
        yield slice_of(f"rival-{n}", [endpoint(f"10.129.0.{n + 1}")], listed)


def prepare_rivals(attacker: Attacker, *, outside: int, ports_: int, flips: int) -> None:
    attacker.write(*_rivals(outside, ports_))


def rivals(attacker: Attacker, *, outside: int, ports_: int, flips: int) -> None:
    """Services that share all frontends; the winner's readiness flips."""
    listed = ports(ports_)
    for turn in range(flips):
        attacker.write(slice_of("rival-0", [endpoint("10.129.0.1", ready=turn % 2 == 1)], listed))
        attacker.pause(0.2)


def brackets(attacker: Attacker, *, length: int, ports_: int, endpoints: int, writes: int) -> None:
    """An annotation that no parser ends quickly with, at a service of many ports and endpoints."""
    listed = ports(ports_)
    attacker.write(*slices_of("brackets", pod_ips(endpoints), listed))
    number = attacker.number()
    for n in range(writes):
        text = "[" * (length - n)
        attacker.write(service("brackets", number, listed, annotations={"kproxy.io/weights": text}))
        attacker.pause(0.1)


def selectors(attacker: Attacker, *, count: int, ports_: int, endpoints: int, writes: int) -> None:
    """Selectors with patterns that match no endpoint, other ones at each write."""
    listed = ports(ports_)
    attacker.write(*slices_of("selectors", pod_ips(endpoints), listed))
    number = attacker.number()
    for n in range(writes):
        text = json.dumps({f"pod:*{k}?{n}": 2 for k in range(count)}, separators=(",", ":"))
        attacker.write(service("selectors", number, listed, annotations={"kproxy.io/weights": text}))
        attacker.pause(0.1)


def ranges(attacker: Attacker, *, count: int, ports_: int) -> None:
    """Source ranges at each port of a load balancer."""
    listed = ports(ports_)
    made = service(
        "ranges",
        attacker.number(),
        listed,
        type="LoadBalancer",
        allocateLoadBalancerNodePorts=False,
        loadBalancerSourceRanges=[f"{20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/25" for n in range(count)],
    )
    made["status"] = {"loadBalancer": {"ingress": [{"ip": "198.19.0.1"}]}}
    attacker.write(made, slice_of("ranges", [endpoint("10.128.1.1")], listed))


def wide_slice(attacker: Attacker, *, ports_: int, endpoints: int) -> None:
    """A slice with many ports that its service does not have."""
    listed = ports(10)
    more = [
        {"name": f"x{n}", "protocol": "TCP", "port": 1 + n, "targetPort": 1 + n} for n in range(ports_ - 10)
    ]
    attacker.write(
        service("wide", attacker.number(), listed),
        slice_of("wide", [endpoint(ip) for ip in pod_ips(endpoints)], [*listed, *more]),
    )


def prepare_crowd(attacker: Attacker, *, endpoints: int, changes: int) -> None:
    listed = ports(1)
    attacker.write(service("crowd", attacker.number(), listed))
    attacker.write_all(slices_of("crowd", pod_ips(endpoints), listed), at_once=1)


def crowd(attacker: Attacker, *, endpoints: int, changes: int) -> None:
    """One pod after the other of a crowd becomes unready."""
    ips, listed = pod_ips(min(endpoints, 1000)), ports(1)
    for n in range(changes):
        attacker.write(slices_of("crowd", ips, listed, unready=ips[: n + 1])[0])
        attacker.pause(0.2)


def scaling(attacker: Attacker, *, few: int, many: int, turns: int) -> None:
    """A service that scales up and down without an end."""
    listed, number = ports(1), attacker.number()
    attacker.write(service("scaling", number, listed))
    for _ in range(turns):
        for count in (many, few):
            found = slices_of("scaling", pod_ips(count), listed)
            if count == few and many > 1000:
                found += [
                    slice_of("scaling", [], listed, name=str(n)) for n in range(1, (many + 999) // 1000)
                ]
            attacker.write(*found)
            attacker.pause(0.3)


TABLE = (
    Attack(
        "weights 1:1022 at ports x externalIPs", weights, {"ports_": 4, "outside": 10},
        {"ports_": 20, "outside": 50},
    ),
    Attack(
        "weights 1:1022 at ports x externalIPs, 17 KB", weights, {"ports_": 8, "outside": 10},
        {"ports_": 100, "outside": 500},
    ),
    Attack(
        "three services share all frontends, readiness flips", rivals,
        {"outside": 12, "ports_": 12, "flips": 2}, {"outside": 160, "ports_": 160, "flips": 4},
        prepare_rivals,
    ),
    Attack(
        "weights annotation of brackets", brackets,
        {"length": 8000, "ports_": 5, "endpoints": 50, "writes": 2},
        {"length": 65536, "ports_": 10, "endpoints": 1000, "writes": 10},
    ),
    Attack(
        "weights annotation of selectors", selectors,
        {"count": 200, "ports_": 5, "endpoints": 50, "writes": 2},
        {"count": 3500, "ports_": 10, "endpoints": 1000, "writes": 10},
    ),
    Attack("source ranges x ports", ranges, {"count": 150, "ports_": 3}, {"count": 2500, "ports_": 10}),
    Attack("source ranges x ports, twice as many", ranges, {"count": 300, "ports_": 3},
           {"count": 5000, "ports_": 10}),
    Attack("a slice of ports x endpoints", wide_slice, {"ports_": 500, "endpoints": 100},
           {"ports_": 20000, "endpoints": 1000}),
    Attack("a service of many endpoints, one pod changes", crowd, {"endpoints": 1100, "changes": 2},
           {"endpoints": 50000, "changes": 10}, prepare_crowd),
    Attack("a service of 100,001 endpoints, one pod changes", crowd, {"endpoints": 300, "changes": 2},
           {"endpoints": 100001, "changes": 3}, prepare_crowd),
    Attack("a service scales up and down", scaling, {"few": 10, "many": 1100, "turns": 1},
           {"few": 10, "many": 1700, "turns": 10}),
)  # fmt: skip
"""The rows of the issue's table."""
