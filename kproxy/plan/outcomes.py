"""What happens to a packet: one type for what is desired and for what the kernel would do.

`kproxy explain` compares two sets of outcomes of one packet: those of the plan, and those of an interpreter
that walks the rules in the kernel. They can be compared because both say it in the same words.
"""

import enum

import msgspec

from kproxy.addresses import Family
from kproxy.plan.model import Protocol


class PacketVerdict(enum.StrEnum):
    """What becomes of a new connection's first packet.

    FORWARD: it goes to `endpoint`. REJECT: the client is answered with an error. DROP: no answer.
    UNTOUCHED ("pass"): no rule of kproxy's acts on it, it goes where its destination leads. UNKNOWN: a rule
    that is not modelled decides.
    """

    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"
    UNTOUCHED = "pass"
    UNKNOWN = "unknown"


class Where(enum.StrEnum):
    """Where a packet comes from, as this node sees it: one of its processes, one of its pods, or outside."""

    NODE = "node"
    POD = "pod"
    OUTSIDE = "outside"


class Packet(msgspec.Struct, frozen=True):
    """The first packet of a connection. Addresses are canonical and of one family.

    `interface` is the device it arrives on, None if it is not known or for a process of the node. A
    `source_port` of 0 stands for any.
    """

    source: str
    protocol: Protocol
    destination: str
    port: int
    where: Where
    interface: str | None = None
    source_port: int = 0

    @property
    def family(self) -> Family:
        """The family of its addresses."""
        return Family.IPV6 if ":" in self.destination else Family.IPV4


class Outcome(msgspec.Struct, frozen=True):
    """One way a packet can go, with the probability (0-1) that it goes it.

    `endpoint` is `ip:port` (`[ip]:port` in IPv6) for FORWARD, else None. `masquerade`: the endpoint sees an
    address of the node instead of the client's. `steps` are the rules on the way, first to last, each as
    `table chain: rule`. `reason` says in words why, for verdicts that need it.
    """

    verdict: PacketVerdict
    probability: float = 1.0
    endpoint: str | None = None
    masquerade: bool = False
    steps: tuple[str, ...] = ()
    reason: str = ""


def merged(outcomes: list[Outcome]) -> tuple[Outcome, ...]:
    """Join outcomes that differ in steps only: probabilities add up, the steps of the likeliest stay.

    The result is ordered by verdict, endpoint, masquerade: equal behaviour gives equal tuples but for steps.
    """
    joined: dict[tuple[str, str, bool, str], tuple[Outcome, float]] = {}
    for each in sorted(outcomes, key=lambda each: -each.probability):
        key = (each.verdict, each.endpoint or "", each.masquerade, each.reason)
        first, total = joined.get(key, (each, 0.0))
        joined[key] = (first, total + each.probability)
    return tuple(
        msgspec.structs.replace(first, probability=total) for _, (first, total) in sorted(joined.items())
    )
