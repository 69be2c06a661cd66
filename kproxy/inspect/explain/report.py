"""The result of `kproxy explain`, as the agent sends it and as `-o json` prints it."""

from collections.abc import Iterable
from datetime import datetime

import msgspec
from msgspec import UNSET, UnsetType

from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import FrontendKind, Outcome, Packet, PacketVerdict, Where
from kproxy.text import clean_all

AGREES, CANNOT_TELL, DIFFERS, REFUSED = 0, 1, 2, 3
"""Exit codes: delivered as desired; cannot tell; the kernel differs; refused or dropped, in both."""

REFUSALS = frozenset({PacketVerdict.REJECT, PacketVerdict.DROP})

_DIGITS = 6


class _Camel(msgspec.Struct, frozen=True, rename="camel"):
    """Base: field names as Kubernetes writes them."""


class Source(_Camel, frozen=True):
    """Where the packet comes from; `interface` is the device on which it arrives, if that is known."""

    ip: str
    where: Where
    interface: str | None = None


class Destination(_Camel, frozen=True):
    """The address and port that the client asks for."""

    ip: str
    port: int


class Frontend(_Camel, frozen=True):
    """The service port that has the destination; `port` is its name, or its number if it has none."""

    service: str
    port: str
    kind: FrontendKind


class Way(_Camel, frozen=True):
    """One outcome. `steps` are those of the kernel; pod, node and zone those of the endpoint, if known."""

    verdict: PacketVerdict
    endpoint: str | None
    masquerade: bool
    probability: float
    reason: str | UnsetType = UNSET
    pod: str | UnsetType = UNSET
    node: str | UnsetType = UNSET
    zone: str | UnsetType = UNSET
    steps: tuple[str, ...] | UnsetType = UNSET


class Desired(_Camel, frozen=True):
    """What should happen, and the decisions that lead to it, in words.

    `affinity`: a client may be remembered, so one endpoint may get all of its connections. `scheduler` names
    what chooses an endpoint, if that is not chance by weight; then the shares are those over a long time.
    """

    outcomes: tuple[Way, ...]
    policy: tuple[str, ...] = ()
    affinity: bool = False
    scheduler: str = ""


class Actual(_Camel, frozen=True):
    """What the kernel would do."""

    outcomes: tuple[Way, ...]


class Excluded(_Camel, frozen=True):
    """An endpoint of the service that gets no such connection, and why."""

    endpoint: str
    pod: str
    reason: str
    detail: str
    node: str = ""
    zone: str = ""


class PolicyFinding(_Camel, frozen=True):
    """What NetworkPolicies say of one end of a way to `ip` and `port`, where that end is a pod of this node.

    `policies` isolate the pod in this direction; none: everything passes. `allowed_by` is the rule that
    allows it, such as `shop/web ingress[0]`; `nearest` says what the nearest rule lacks. `closed` are those
    of `policies` that cannot be obeyed.
    """

    direction: str
    pod: str
    ip: str
    port: int
    policies: tuple[str, ...]
    allowed: bool
    allowed_by: str | None
    nearest: str = ""
    closed: tuple[str, ...] = ()


class Since(_Camel, frozen=True):
    """The last change of the service: when it arrived here, and when the kernel had it (None: not yet).

    `revision` is the resourceVersion of the object that changed last, if the source has one.
    """

    arrived: datetime
    applied: datetime | None
    revision: str = ""


class Report(_Camel, frozen=True):
    """The answer to one question. `actual` is None if the kernel was not asked.

    `policies` are what NetworkPolicies say of each way, if they are enforced. `conflicts` are addresses and
    ports that the service asks for and does not have; `notes` say what the answer does not cover.
    """

    source: Source
    protocol: Protocol
    destination: Destination
    frontend: Frontend | None
    desired: Desired
    actual: Actual | None = None
    excluded: tuple[Excluded, ...] = ()
    differences: tuple[str, ...] = ()
    conflicts: tuple[str, ...] = ()
    policies: tuple[PolicyFinding, ...] = ()
    notes: tuple[str, ...] = ()
    since: Since | None = None
    node: str = ""
    zone: str = ""
    mode: str = ""

    @property
    def packet(self) -> Packet:
        """The packet that was asked about."""
        return Packet(
            self.source.ip,
            self.protocol,
            self.destination.ip,
            self.destination.port,
            self.source.where,
            self.source.interface,
        )

    @property
    def exit_code(self) -> int:
        """The exit code of the command."""
        if self.differences:
            return DIFFERS
        ways = self.desired.outcomes if self.actual is None else self.actual.outcomes
        if any(each.verdict is PacketVerdict.UNKNOWN for each in ways):
            return CANNOT_TELL
        return REFUSED if ways and all(each.verdict in REFUSALS for each in ways) else AGREES

    def json(self) -> bytes:
        """The report as JSON, indented."""
        return msgspec.json.format(msgspec.json.encode(clean_all(msgspec.to_builtins(self))), indent=2)


def actual_of(outcomes: Iterable[Outcome]) -> Actual:
    """What an interpreter found, with its steps."""
    return Actual(
        tuple(
            Way(
                each.verdict,
                each.endpoint,
                each.masquerade,
                round(each.probability, _DIGITS),
                each.reason or UNSET,
                steps=each.steps,
            )
            for each in outcomes
        )
    )


def rounded(probability: float) -> float:
    """A probability as it is printed in JSON."""
    return round(probability, _DIGITS)
