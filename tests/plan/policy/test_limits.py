"""A policy beyond a bound is one that cannot be obeyed; the bounds count what a policy costs."""

import pytest

from kproxy.plan.policy import limits
from tests.plan.policy.objects import Json, labels, read, source


def _limited(field: str, number: int) -> Json:
    selector = labels(app="web")
    pods = [{"podSelector": labels(a=str(n))} for n in range(number)]
    blocks = [{"ipBlock": {"cidr": f"10.{n // 256}.{n % 256}.0/24"}} for n in range(number)]
    specs: dict[str, Json] = {
        "rules": {"ingress": [{}] * (number - number // 2), "egress": [{}] * (number // 2)},
        "peers": {"ingress": [{"from": blocks}]},
        "peers with selectors": {"ingress": [{"from": pods[: number // 2]}, {"from": pods[number // 2 :]}]},
        "peers in several namespaces": {
            "ingress": [{"from": [{"namespaceSelector": labels(a=str(n))}]} for n in range(number)],
            "egress": [{"to": [{"namespaceSelector": labels(a="0")}]}],
        },
        "requirements of selectors": {
            "ingress": [
                {
                    "from": [
                        {"podSelector": labels(**{f"k{n}": "1" for n in range(i, min(i + 50, number))})}
                        for i in range(0, number, 50)
                    ]
                }
            ]
        },
        "ports": {"ingress": [{"ports": [{"port": n + 1} for n in range(number)]}]},
        "port names": {"egress": [{"ports": [{"port": f"p{n}"} for n in range(number)]}]},
        "exceptions of ipBlocks": {
            "ingress": [
                {
                    "from": [
                        {
                            "ipBlock": {
                                "cidr": "10.0.0.0/8",
                                "except": [f"10.{n // 256}.{n % 256}.0/24" for n in range(number)],
                            }
                        }
                    ]
                }
            ]
        },
        "combinations of peer and port": {
            "ingress": [
                {
                    "from": pods[: number // 20],
                    "ports": [{"port": f"p{n}"} for n in range(20)],
                },
                *([{"ports": [{"port": 80}]}] * (number % 20)),
            ]
        },
    }
    return specs[field] | {"podSelector": selector, "policyTypes": ["Ingress"]}


@pytest.mark.parametrize(
    ("what", "limit"),
    [
        ("rules", limits.RULES),
        ("peers", limits.PEERS),
        ("peers with selectors", limits.PODS_PEERS),
        ("peers in several namespaces", limits.WIDE_PEERS),
        ("requirements of selectors", limits.REQUIREMENTS_PER_POLICY),
        ("exceptions of ipBlocks", limits.EXCEPTS),
        ("ports", limits.PORTS),
        ("port names", limits.PORT_NAMES),
        ("combinations of peer and port", limits.COMBINATIONS),
    ],
)
def test_a_policy_beyond_a_limit_is_closed_and_named(what: str, limit: int) -> None:
    assert read(_limited(what, limit)).problems == ()
    assert read(_limited(what, limit + 1)).problems == (f"spec={limit + 1}: more than {limit} {what}",)


def test_exceptions_that_cut_blocks_into_too_many_ranges_are_refused() -> None:
    holes = [f"fd00:{n:x}::1/128" for n in range(limits.RANGES // 90)]
    found = read(source(ipBlock={"cidr": "fd00::/16", "except": holes}))
    assert found.problems == (
        f"spec={limits.RANGES + 1}: more than {limits.RANGES} IPv6 ranges without exceptions",
    )
    assert read(source(ipBlock={"cidr": "fd00::/16", "except": holes[:100]})).problems == ()


def test_ranges_are_counted_only_if_they_may_be_too_many() -> None:
    """Holes beside each other make few ranges, whatever their number."""
    holes = [f"10.{n // 256}.{n % 256}.0/24" for n in range(1000)]
    rule = {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": holes}}]}
    assert read({"ingress": [rule] * 4}).problems == ()
