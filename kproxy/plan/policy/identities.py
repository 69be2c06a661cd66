"""Which pods each peer with selectors selects, kept per identity instead of per pod.

An identity is a namespace and a set of labels, as in Cilium: all pods of a workload have the same one, so
10,000 pods are about 1,000 identities. Selectors are compared with identities when a selector, an identity
or a namespace's labels are new. A pod that comes or goes within its identity costs no comparison at all.
"""

from collections.abc import Collection, Iterator, Mapping

import msgspec

from kproxy.addresses import Family
from kproxy.plan.policy.compile import Compiled
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.rules import NAMESPACE_NAME, NamedPort, PodsPeer, Policy
from kproxy.plan.policy.selectors import Labels, Selector

_CODE = msgspec.msgpack.Encoder(order="deterministic")
_NO_SETS: frozenset["PodSet"] = frozenset()


class Subject:
    """What policies mean for the pods of an identity on this node.

    `addresses` are theirs. `policies` are those that select them, by key; `groups` their compiled forms, by
    direction, family and named ports of the pod.
    """

    __slots__ = ("addresses", "groups", "policies")

    def __init__(self, policies: dict[str, Policy]) -> None:
        self.addresses: set[str] = set()
        self.policies = policies
        self.groups: dict[tuple[Direction, Family, tuple[NamedPort, ...]], Compiled] = {}


class Identity:
    """Pods of one namespace with equal labels.

    `pods` counts them. `subject` is set while one of them is on this node; the planner changes it. `sets` are
    the pod sets in use that select it.
    """

    __slots__ = ("_addresses", "code", "labels", "namespace", "pods", "sets", "subject")

    def __init__(self, namespace: str, labels: Labels, code: bytes) -> None:
        self.namespace = namespace
        self.labels = labels
        self.code = code
        self.pods = 0
        self.subject: Subject | None = None
        self.sets: frozenset[PodSet] | set[PodSet] = _NO_SETS
        self._addresses: list[set[str] | None] = [None, None]

    def addresses(self, family: Family) -> Collection[str]:
        """The addresses that its pods hold."""
        return self._addresses[family is Family.IPV6] or ()

    def hold(self, address: str) -> None:
        """One of its pods holds an address from now on."""
        known = self._addresses[":" in address]
        if known is None:
            self._addresses[":" in address] = {address}
        else:
            known.add(address)

    def release(self, address: str) -> None:
        """None of its pods holds an address any more."""
        known = self._addresses[":" in address]
        if known is not None:
            known.discard(address)
            if not known:
                self._addresses[":" in address] = None


class PodSet:
    """A peer with selectors that some group uses, and the identities that it selects."""

    __slots__ = ("identities", "name", "peer")

    def __init__(self, peer: PodsPeer) -> None:
        self.name = peer.name
        self.peer = peer
        self.identities: set[Identity] = set()


class _Selection:
    """A namespaceSelector in use: the namespaces that it was compared with, and the sets that have it."""

    __slots__ = ("_matched", "selector", "sets")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        self.sets: dict[str, PodSet] = {}
        self._matched: dict[str, bool] = {}

    def matches(self, namespace: str, labels: Labels) -> bool:
        found = self._matched.get(namespace)
        if found is None:
            found = self._matched[namespace] = self.selector.matches(labels)
        return found

    def forget(self, namespace: str) -> None:
        self._matched.pop(namespace, None)


Membership = tuple[PodSet, Identity, bool]
"""A set, and an identity that is in it from now on, or is not."""


class Identities:
    """All identities, the labels of namespaces, and the sets in use. It changes `Identity.sets`."""

    def __init__(self) -> None:
        self._by_namespace: dict[str, dict[bytes, Identity]] = {}
        self._labels: dict[str, Labels] = {}
        self._sets: dict[str, PodSet] = {}
        self._own: dict[str, dict[str, PodSet]] = {}
        """The sets whose peer is in one namespace, by namespace and name."""
        self._selections: dict[Selector, _Selection] = {}

    def labels_of(self, namespace: str) -> Labels:
        """The labels of a namespace; one without Namespace object has its name as its only label."""
        return self._labels.get(namespace) or {NAMESPACE_NAME: namespace}

    def within(self, namespace: str) -> Iterator[Identity]:
        """The identities of a namespace."""
        yield from self._by_namespace.get(namespace, {}).values()

    def enter(self, namespace: str, labels: Labels) -> Identity:
        """The identity of one more pod."""
        code = _CODE.encode(labels)
        known = self._by_namespace.get(namespace)
        if known is None:
            known = self._by_namespace[namespace] = {}
        identity = known.get(code)
        if identity is None:
            identity = known[code] = Identity(namespace, labels, code)
            for each in self._candidates(namespace):
                if each.peer.pods.matches(labels):
                    _join(each, identity)
        identity.pods += 1
        return identity

    def leave(self, identity: Identity) -> None:
        """One pod of the identity is gone; with the last one the identity is."""
        identity.pods -= 1
        if identity.pods:
            return
        for each in identity.sets:
            each.identities.discard(identity)
        known = self._by_namespace[identity.namespace]
        del known[identity.code]
        if not known:
            del self._by_namespace[identity.namespace]
            for selection in self._selections.values():
                selection.forget(identity.namespace)

    def label(self, namespace: str, labels: Mapping[str, str] | None) -> list[Membership]:
        """Give a namespace its labels, None if there is no Namespace any more; return what that changes."""
        before = self.labels_of(namespace)
        if labels is None:
            self._labels.pop(namespace, None)
        else:
            self._labels[namespace] = {**labels, NAMESPACE_NAME: namespace}
        after = self.labels_of(namespace)
        changes: list[Membership] = []
        identities = self._by_namespace.get(namespace)
        if before == after or not identities:
            return changes
        for selection in self._selections.values():
            was = selection.matches(namespace, before)
            selection.forget(namespace)
            if selection.matches(namespace, after) is was:
                continue
            for each in selection.sets.values():
                for identity in identities.values():
                    if each.peer.pods.matches(identity.labels):
                        (_part if was else _join)(each, identity)
                        changes.append((each, identity, not was))
        return changes

    def open(self, peer: PodsPeer) -> PodSet:
        """The set of a peer, which is kept until `close`."""
        known = self._sets.get(peer.name)
        if known is not None:
            return known
        opened = self._sets[peer.name] = PodSet(peer)
        if peer.namespaces is None:
            self._own.setdefault(peer.namespace, {})[peer.name] = opened
            namespaces = [peer.namespace]
        else:
            selection = self._selections.get(peer.namespaces)
            if selection is None:
                selection = self._selections[peer.namespaces] = _Selection(peer.namespaces)
            selection.sets[peer.name] = opened
            namespaces = [
                each for each in self._by_namespace if selection.matches(each, self.labels_of(each))
            ]
        for namespace in namespaces:
            for identity in self._by_namespace.get(namespace, {}).values():
                if peer.pods.matches(identity.labels):
                    _join(opened, identity)
        return opened

    def close(self, name: str) -> None:
        """A set is not used any more."""
        closed = self._sets.pop(name)
        for identity in closed.identities:
            if isinstance(identity.sets, set):
                identity.sets.discard(closed)
        peer = closed.peer
        if peer.namespaces is None:
            del self._own[peer.namespace][name]
            if not self._own[peer.namespace]:
                del self._own[peer.namespace]
        else:
            selection = self._selections[peer.namespaces]
            del selection.sets[name]
            if not selection.sets:
                del self._selections[peer.namespaces]

    def _candidates(self, namespace: str) -> Iterator[PodSet]:
        """The sets in use that may select pods of a namespace."""
        yield from self._own.get(namespace, {}).values()
        if self._selections:
            labels = self.labels_of(namespace)
            for selection in self._selections.values():
                if selection.matches(namespace, labels):
                    yield from selection.sets.values()


def selects(peer: PodsPeer, identity: Identity, namespace_labels: Labels) -> bool:
    """Whether a peer selects the pods of an identity, compared anew."""
    if peer.namespaces is None:
        return peer.namespace == identity.namespace and peer.pods.matches(identity.labels)
    return peer.namespaces.matches(namespace_labels) and peer.pods.matches(identity.labels)


def _join(each: PodSet, identity: Identity) -> None:
    each.identities.add(identity)
    if isinstance(identity.sets, set):
        identity.sets.add(each)
    else:
        identity.sets = {each}


def _part(each: PodSet, identity: Identity) -> None:
    each.identities.discard(identity)
    if isinstance(identity.sets, set):
        identity.sets.discard(each)
