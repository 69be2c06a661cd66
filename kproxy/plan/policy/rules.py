"""A policy as it was understood: values that planning, judging and describing share.

They are of no IP family, and say what the policy says. One thing is simplified: a namespaceSelector that asks
for one namespace by name becomes that namespace.
"""

import msgspec

from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.names import content_name
from kproxy.plan.policy.ranges import Block
from kproxy.plan.policy.selectors import EVERYTHING, Selector

NAMESPACE_NAME = "kubernetes.io/metadata.name"
"""The label that every Namespace has with its name as value (KEP-2161)."""


NamedPort = tuple[str, Protocol, int]
"""Name, protocol and number of a container port that has a name."""


class PodsPeer(msgspec.Struct, frozen=True, order=True):
    """Pods with an address of their own: those of `namespace`, or of `namespaces` if that is set."""

    namespace: str
    namespaces: Selector | None
    pods: Selector
    name: str
    """The name of its set in PolicyTable.peers; equal peers have equal names."""

    def __str__(self) -> str:
        pods = "all pods" if self.pods == EVERYTHING else f"pods {self.pods}"
        if self.namespaces is None:
            return f"{pods} in {self.namespace}"
        if self.namespaces == EVERYTHING:
            return f"{pods} in all namespaces"
        return f"{pods} in namespaces {self.namespaces}"


def pods_peer(own: str, namespaces: Selector | None, pods: Selector) -> PodsPeer:
    """The peer of a policy in the namespace `own`; `namespaces` is None without a namespaceSelector."""
    named = namespaces.single(NAMESPACE_NAME) if namespaces is not None else own
    if named is not None:
        namespaces = None
    content = (named, None if namespaces is None else namespaces.content(), pods.content())
    return PodsPeer(named or "", namespaces, pods, content_name("p", content))


class PortSpec(msgspec.Struct, frozen=True, gc=False, order=True):
    """An entry of `ports`: a name, or the ports `first` to `last`, or with neither every port."""

    protocol: Protocol
    name: str = ""
    first: int = 0
    last: int = 0

    def __str__(self) -> str:
        if self.name:
            return f"{self.protocol} {self.name}"
        if not self.first:
            return f"{self.protocol}"
        return f"{self.protocol} {self.first}" + (f"-{self.last}" if self.last != self.first else "")


class Rule(msgspec.Struct, frozen=True):
    """A rule. Without `ports` it is for all traffic.

    `anyone`: it has no peers and matches all; otherwise one of `pods` or `blocks` must match.
    """

    origin: str
    ports: tuple[PortSpec, ...] = ()
    anyone: bool = False
    pods: tuple[PodsPeer, ...] = ()
    blocks: tuple[Block, ...] = ()


class Policy(msgspec.Struct, frozen=True):
    """A NetworkPolicy. With `problems` it cannot be obeyed, has no rules, and allows nothing.

    `selector` and `directions` are then those that could be read, else everything.
    """

    key: str
    namespace: str
    selector: Selector
    directions: frozenset[Direction]
    ingress: tuple[Rule, ...] = ()
    egress: tuple[Rule, ...] = ()
    problems: tuple[str, ...] = ()

    def rules(self, direction: Direction) -> tuple[Rule, ...]:
        """Its rules of one direction; none if it does not isolate in that direction."""
        if direction not in self.directions:
            return ()
        return self.ingress if direction is Direction.INGRESS else self.egress
