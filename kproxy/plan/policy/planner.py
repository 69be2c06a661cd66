"""Plan NetworkPolicies for one node: from changed objects to changed tables, in the order in which they come.

Every update leads to the state that a new planner would have with all objects, so neither the order of events
nor a restart matters. Its cost follows from what it changes: a pod is compared with selectors only if its
labels are new, a policy with the identities of its own namespace, and a table is touched only where a group
of this node uses the change.
"""

from collections.abc import Collection, Mapping
from typing import Self

from kproxy.addresses import Family, parse_ip
from kproxy.plan.model import Protocol
from kproxy.plan.policy.compile import Compiled, CompiledPolicy, group_of
from kproxy.plan.policy.describe import PodPolicies, describe_pod
from kproxy.plan.policy.identities import Identities, Identity, PodSet, Subject
from kproxy.plan.policy.judge import Flow, judge_flow
from kproxy.plan.policy.model import Direction, Judgement, PolicyTable, Problems, Touched
from kproxy.plan.policy.names import named_port_set
from kproxy.plan.policy.pods import AddressBook, PodEntry, PodReader
from kproxy.plan.policy.rules import NamedPort, PodsPeer, Policy
from kproxy.plan.policy.spec import read_policy
from kproxy.plan.policy.tables import FamilyTable
from kproxy.state.policy_wire import Namespace, NetworkPolicy, Pod

_NO_PORTS: tuple[NamedPort, ...] = ()
_NO_SETS: frozenset[PodSet] = frozenset()


class PolicyPlanner:
    """The tables of some families for one node. Not thread-safe: the caller holds a lock."""

    def __init__(self, node: str, families: Collection[Family]) -> None:
        self.node = node
        self._pods: dict[str, PodEntry] = {}
        self._book = AddressBook()
        self._identities = Identities()
        self._policies: dict[str, dict[str, Policy]] = {}
        """By namespace and key."""
        self._compiled: dict[str, CompiledPolicy] = {}
        """The policies that some pod of this node needs, by key."""
        self._problems: dict[str, tuple[str, ...]] = {}
        self._families = {
            family: FamilyTable(family, self._pod_members, self._named_members)
            for family in Family
            if family in families
        }
        self._by_colon = tuple(map(self._families.get, (Family.IPV4, Family.IPV6)))
        """The table of an address by `":" in address`, which is much faster than by Family."""
        self._dirty: set[str] = set()
        """Addresses whose groups must be found anew."""

    @classmethod
    def full(
        cls,
        node: str,
        families: Collection[Family],
        pods: Mapping[str, Pod | None],
        namespaces: Mapping[str, Namespace | None],
        policies: Mapping[str, NetworkPolicy | None],
    ) -> Self:
        """A planner that knows these objects and nothing else."""
        planner = cls(node, families)
        planner.update(pods, namespaces, policies)
        return planner

    @property
    def tables(self) -> Mapping[Family, PolicyTable]:
        """The desired state; it is changed in place by `update`."""
        return {family: each.table for family, each in self._families.items()}

    @property
    def problems(self) -> Problems:
        """The policies that cannot be obeyed."""
        return self._problems

    def update(
        self,
        pods: Mapping[str, Pod | None],
        namespaces: Mapping[str, Namespace | None],
        policies: Mapping[str, NetworkPolicy | None],
    ) -> dict[Family, Touched]:
        """Take over changed objects by key, None for those that are gone; return what that touched."""
        for name, namespace in namespaces.items():
            self._set_namespace(name, namespace)
        for key, policy in policies.items():
            self._set_policy(key, policy)
        before: dict[str, PodEntry | None] = {}
        reader = PodReader(self.node, self._identities)
        for key, pod in pods.items():
            self._set_pod(key, None if pod is None else reader.read(key, pod), before)
        for address, holder in before.items():
            self._move(address, holder, self._book.holders.get(address))
        dirty, self._dirty = self._dirty, set()
        for address in dirty:
            self._assign(address)
        touched: dict[Family, Touched] = {}
        gone: set[str] = set()
        for family, table in self._families.items():
            touched[family], closed = table.finish()
            gone |= closed
        for name in gone:
            if not any(name in each.table.peers for each in self._families.values()):
                self._identities.close(name)
        return touched

    def judge(
        self,
        protocol: Protocol,
        source_ip: str,
        destination_ip: str,
        port: int,
        source_port: int = 0,  # noqa: ARG002 (no policy asks for it)
        *,
        from_node: bool = False,
    ) -> Judgement:
        """Whether a new connection is allowed, and why.

        The addresses are those after translation of service addresses. `from_node`: the source is this node
        itself. Raises ValueError for addresses that are none, or of two families.
        """
        family, source = parse_ip(source_ip)
        other, destination = parse_ip(destination_ip)
        if family is not other:
            raise ValueError(f"{source} and {destination} are of different IP families")
        holders = self._book.holders
        ends = source, destination, holders.get(source), holders.get(destination)
        flow = Flow(family, protocol, port, *ends)
        return judge_flow(flow, self._selecting, self._identities.labels_of, from_node=from_node)

    def pod_at(self, ip: str) -> str | None:
        """The key of the pod that has an address."""
        try:
            holder = self._book.holders.get(parse_ip(ip)[1])
        except ValueError:
            return None
        return None if holder is None else holder.key

    def policies_of(self, pod: str) -> PodPolicies | None:
        """What isolates a pod and what it may do; None if the pod is not known."""
        entry = self._pods.get(pod)
        return None if entry is None else describe_pod(entry, self._selecting(entry))

    def pods_of(self, policy: str) -> tuple[str, ...]:
        """The keys of the pods with an address of their own that a policy selects, sorted."""
        namespace = policy.partition("/")[0]
        found = self._policies.get(namespace, {}).get(policy)
        if found is None:
            return ()
        return tuple(
            sorted(
                {
                    self._book.holders[address].key
                    for identity in self._identities.within(namespace)
                    if found.selector.matches(identity.labels)
                    for family in Family
                    for address in identity.addresses(family)
                }
            )
        )

    def _set_namespace(self, name: str, namespace: Namespace | None) -> None:
        labels = None if namespace is None else namespace.metadata.labels
        for pods, identity, joins in self._identities.label(name, labels):
            self._move_identity(pods, identity, joins=joins)

    def _move_identity(self, pods: PodSet, identity: Identity, *, joins: bool) -> None:
        for family, table in self._families.items():
            for address in identity.addresses(family):
                table.move(pods.name, address, joins=joins)

    def _set_policy(self, key: str, policy: NetworkPolicy | None) -> None:
        namespace = key.partition("/")[0]
        known = self._policies.setdefault(namespace, {})
        old, new = known.get(key), None if policy is None else read_policy(policy)
        if old == new:
            if not known:
                del self._policies[namespace]
            return
        self._problems.pop(key, None)
        self._compiled.pop(key, None)
        if new is None:
            del known[key]
            if not known:
                del self._policies[namespace]
        else:
            known[key] = new
            if new.problems:
                self._problems[key] = new.problems
        for identity in self._identities.within(namespace):
            subject = identity.subject
            if subject is None:
                continue
            was = subject.policies.pop(key, None) is not None
            if new is not None and new.selector.matches(identity.labels):
                subject.policies[key] = new
            elif not was:
                continue
            subject.groups.clear()
            self._dirty |= subject.addresses

    def _set_pod(self, key: str, new: PodEntry | None, before: dict[str, PodEntry | None]) -> None:
        """Take over a pod; `before` gets the former holders of its addresses."""
        old = self._pods.get(key)
        holders = self._book.holders
        if old is not None and old == new:
            self._identities.leave(old.identity)  # it was entered once more by reading
            return
        for entry in (old, new):
            if entry is not None:
                for address in entry.addresses:
                    before.setdefault(address, holders.get(address))
        if old is not None:
            self._book.release(old)
            self._identities.leave(old.identity)
        if new is not None:
            self._book.claim(new)
            self._pods[key] = new
        elif old is not None:
            del self._pods[key]

    def _move(self, address: str, old: PodEntry | None, new: PodEntry | None) -> None:
        """An address has another holder, or its holder has changed."""
        if old is new:
            return
        before = None if old is None else old.identity
        after = None if new is None else new.identity
        table = self._by_colon[":" in address]
        if before is not after:
            left = before.sets if before is not None else _NO_SETS
            joined = after.sets if after is not None else _NO_SETS
            if before is not None:
                before.release(address)
            if after is not None:
                after.hold(address)
            if table is not None:
                for each in left - joined:
                    table.move(each.name, address, joins=False)
                for each in joined - left:
                    table.move(each.name, address, joins=True)
        if table is not None and table.table.named:
            old_ports = old.ports if old is not None else _NO_PORTS
            new_ports = new.ports if new is not None else _NO_PORTS
            if old_ports != new_ports:
                for name, protocol, number in set(old_ports) - set(new_ports):
                    table.move_named(named_port_set(name, protocol), (address, number), joins=False)
                for name, protocol, number in set(new_ports) - set(old_ports):
                    table.move_named(named_port_set(name, protocol), (address, number), joins=True)
        self._move_subject(address, old, new)

    def _move_subject(self, address: str, old: PodEntry | None, new: PodEntry | None) -> None:
        """The same for the identities of pods of this node."""
        if old is not None and new is not None and old.local and new.local and old.identity is new.identity:
            self._dirty.add(address)
            return
        if old is not None and old.local:
            self._dirty.add(address)
            subject = old.identity.subject
            if subject is not None:
                subject.addresses.discard(address)
                if not subject.addresses:
                    old.identity.subject = None
        if new is not None and new.local:
            self._dirty.add(address)
            if new.identity.subject is None:
                selecting = self._selecting(new)
                new.identity.subject = Subject({each.key: each for each in selecting})
            new.identity.subject.addresses.add(address)

    def _assign(self, address: str) -> None:
        """Give an address the groups that its pod has now, or none."""
        table = self._by_colon[":" in address]
        if table is None:
            return
        pod = self._book.holders.get(address)
        if pod is None or not pod.local or pod.identity.subject is None:
            table.assign(address, None, [(direction, None) for direction in Direction])
            return
        subject = pod.identity.subject
        table.assign(
            address,
            pod.key,
            [
                (direction, self._group(subject, direction, table.family, pod.ports))
                for direction in Direction
            ],
        )

    def _group(
        self, subject: Subject, direction: Direction, family: Family, ports: tuple[NamedPort, ...]
    ) -> Compiled | None:
        """The group of pods with these named ports, None if nothing isolates them."""
        known = subject.groups.get((direction, family, ports))
        if known is not None:
            return known
        isolating = []
        for key in sorted(subject.policies):
            policy = subject.policies[key]
            if direction in policy.directions:
                compiled = self._compiled.get(key)
                if compiled is None:
                    compiled = self._compiled[key] = CompiledPolicy(policy)
                isolating.append(compiled)
        if not isolating:
            return None
        group = subject.groups[direction, family, ports] = group_of(direction, isolating, family, ports)
        return group

    def _selecting(self, pod: PodEntry) -> list[Policy]:
        """The policies that select a pod, by key."""
        subject = pod.identity.subject
        if subject is not None:
            return [subject.policies[key] for key in sorted(subject.policies)]
        known = self._policies.get(pod.identity.namespace, {})
        return [known[key] for key in sorted(known) if known[key].selector.matches(pod.identity.labels)]

    def _pod_members(self, peer: PodsPeer, family: Family) -> set[str]:
        """The addresses of a new pod set."""
        identities = self._identities.open(peer).identities
        members: set[str] = set()
        return members.union(*(each.addresses(family) for each in identities))

    def _named_members(self, name: str, protocol: Protocol, family: Family) -> set[tuple[str, int]]:
        """The elements of a new set of named ports."""
        colon = family is Family.IPV6
        # Pods share their ports, so that few are searched.
        known: dict[int, tuple[int, ...]] = {}
        members: set[tuple[str, int]] = set()
        for address, pod in self._book.holders.items():
            if (":" in address) is colon:
                numbers = known.get(id(pod.ports))
                if numbers is None:
                    numbers = known[id(pod.ports)] = pod.numbers(name, protocol)
                for number in numbers:
                    members.add((address, number))
        return members
