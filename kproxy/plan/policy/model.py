"""What NetworkPolicies demand of this node, as values: groups of rules, sets of peers, isolated pods.

A group holds the rules of one direction that one set of policies gives to pods that see them alike, so pods
with equal policies share a group. Groups, address ranges and the selectors behind sets of pods are named by a
hash of their content: a group never changes, a changed policy gives another group. Only the members of pod
sets and the group of a pod change under a name. So each change can be one transaction that no packet sees
half-written.

Everything is of one IP family; addresses are canonical.
"""

import enum
from collections.abc import Mapping

import msgspec

from kproxy.plan.model import Protocol


class Direction(enum.StrEnum):
    """The direction of a connection as its isolated pod sees it."""

    INGRESS = "ingress"
    EGRESS = "egress"


class PortMatch(msgspec.Struct, frozen=True, order=True):
    """Ports of one protocol at the destination.

    `ranges` are inclusive, sorted and disjoint; empty: every port. `name`: a port name that is looked up at
    the destination pod (egress only; at ingress the names are resolved in `ranges`). Then `ranges` is empty.
    """

    protocol: Protocol
    ranges: tuple[tuple[int, int], ...] = ()
    name: str = ""


class PeerMatch(msgspec.Struct, frozen=True, order=True):
    """The other end: members of the pod set `pods` (a name in PolicyTable.peers), or addresses in `ranges`.

    `ranges` is the name of an immutable set in PolicyTable.ranges. Exactly one of both is set.
    """

    pods: str = ""
    ranges: str = ""


class RuleMatch(msgspec.Struct, frozen=True, order=True):
    """One alternative: packets that match one of `ports` and one of `peers` are allowed; empty: any.

    `origin` is where it comes from, such as `shop/web ingress[0]`; of equal rules, the first counts.
    """

    ports: tuple[PortMatch, ...] = ()
    peers: tuple[PeerMatch, ...] = ()
    origin: str = ""


class Group(msgspec.Struct, frozen=True):
    """The rules of one direction for pods that the same policies isolate.

    `name` is `i-HASH` or `e-HASH`. `policies` are the keys (`namespace/name`) of the isolating policies,
    sorted. Without rules it allows nothing. `closed`: those of `policies` that cannot be obeyed, and so allow
    nothing. A pod whose policies allow everything has no group.
    """

    name: str
    direction: Direction
    policies: tuple[str, ...]
    rules: tuple[RuleMatch, ...] = ()
    closed: tuple[str, ...] = ()


class PolicyTable(msgspec.Struct):
    """The desired state of one family. The planner changes it in place; readers do not.

    `groups` by name. `peers`: the addresses of each pod set that a group uses (`p-HASH`). `named`: for each
    port name and protocol that an egress rule uses (`n-HASH`), elements `(ip, port)` with `named_protocols`.
    `ranges`: canonical disjoint CIDRs of each set of address ranges (`c-HASH`). `isolated`: the group of each
    isolated local pod address, by direction. `local`: the addresses of all pods of this node that are neither
    finished nor in the host's network, and the key of each pod.
    """

    groups: dict[str, Group] = msgspec.field(default_factory=dict)
    peers: dict[str, set[str]] = msgspec.field(default_factory=dict)
    named: dict[str, set[tuple[str, int]]] = msgspec.field(default_factory=dict)
    named_protocols: dict[str, tuple[str, Protocol]] = msgspec.field(default_factory=dict)
    ranges: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    isolated: dict[Direction, dict[str, str]] = msgspec.field(
        default_factory=lambda: {direction: {} for direction in Direction}
    )
    local: dict[str, str] = msgspec.field(default_factory=dict)


class Touched(msgspec.Struct, frozen=True):
    """What an update changed in the PolicyTable of one family, by name; what is gone is named too.

    `members`: pod sets and sets of named ports with other members. `addresses`: local pod addresses whose
    groups changed, or that came or went.
    """

    groups: frozenset[str] = frozenset()
    members: frozenset[str] = frozenset()
    ranges: frozenset[str] = frozenset()
    addresses: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.groups or self.members or self.ranges or self.addresses)


class FlowEnd(msgspec.Struct, frozen=True):
    """One end of a flow: an address, and the pod (`namespace/name`) that has it, where it is known."""

    ip: str
    pod: str | None = None
    local: bool = False


class DirectionJudgement(msgspec.Struct, frozen=True):
    """What the policies of one end say.

    `policies` isolate the pod in this direction; empty: it is not isolated. `allowed_by` is the `origin` of
    the rule that allows the flow, None if none does. `nearest` says in words what the nearest rule lacks,
    such as `shop/web ingress[0] allows this source, but only TCP 8080`. `closed` as in Group.
    """

    direction: Direction
    pod: str
    policies: tuple[str, ...] = ()
    allowed: bool = True
    allowed_by: str | None = None
    nearest: str = ""
    closed: tuple[str, ...] = ()


class Judgement(msgspec.Struct, frozen=True):
    """Whether a new connection is allowed: both ends must allow it; only ends on this node are judged here.

    `source` and `destination` are the ends after translation of service addresses. `by`: egress of the source
    and ingress of the destination, where that end is a pod. `reason` is a sentence for the end that refuses.
    """

    source: FlowEnd
    destination: FlowEnd
    protocol: Protocol
    port: int
    allowed: bool
    by: tuple[DirectionJudgement, ...] = ()
    reason: str = ""


Problems = Mapping[str, tuple[str, ...]]
"""What is wrong with each policy that cannot be obeyed, by its key (`namespace/name`)."""
