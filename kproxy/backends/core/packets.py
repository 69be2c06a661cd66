"""A packet on its way through the kernel's hooks, as the interpreters of rules see it.

A packet whose way depends on chance, or on a rule that is not modelled, is several branches. Each has its
probability among those that share its assumptions, and the rules that it passed.
"""

import enum
from collections.abc import Sequence
from typing import Protocol as Interface

import msgspec

from kproxy.addresses import join_host_port
from kproxy.plan.model import Protocol
from kproxy.plan.outcomes import Outcome, PacketVerdict, Routing, Where, merged


class Hook(enum.IntEnum):
    """enum nf_inet_hooks of include/uapi/linux/netfilter.h."""

    PREROUTING = 0
    INPUT = 1
    FORWARD = 2
    OUTPUT = 3
    POSTROUTING = 4


NUMBERS = {Protocol.TCP: 6, Protocol.UDP: 17, Protocol.SCTP: 132}
"""IANA protocol numbers."""


class Flow(msgspec.Struct, frozen=True, gc=False):
    """The headers and metadata of the first packet of a connection.

    Addresses and ports are those after the translations so far. `incoming` and `outgoing` are devices: "" for
    none, None if it is not known. `source` "" and `source_port` 0 are not known. `bound` are the hooks' kinds
    of translation that are decided (a connection is translated once each way). `scheduled`: IPVS sends it.
    `client` is where the packet comes from. `connected`: the client's socket was given another destination
    than it asked for, so that the connection is not translated.
    """

    source: str
    destination: str
    protocol: Protocol
    port: int
    source_port: int = 0
    incoming: str | None = ""
    outgoing: str | None = ""
    mark: int = 0
    connection_mark: int = 0
    translated: bool = False
    masqueraded: bool = False
    untracked: bool = False
    scheduled: bool = False
    bound: tuple[bool, bool] = (False, False)
    client: Where = Where.OUTSIDE
    connected: bool = False


class Branch(msgspec.Struct, frozen=True, gc=False):
    """One way of a packet so far: `verdict` is None while it goes on.

    `assumed` maps rules that are not modelled to what was assumed: that they match, or that they do not.
    """

    flow: Flow
    probability: float = 1.0
    steps: tuple[str, ...] = ()
    assumed: tuple[tuple[str, bool], ...] = ()
    verdict: PacketVerdict | None = None
    reason: str = ""

    def share(self, probability: float) -> "Branch":
        """The branch that chance takes with this probability."""
        return msgspec.structs.replace(self, probability=self.probability * probability)

    def step(self, text: str) -> "Branch":
        """The branch after a rule."""
        return msgspec.structs.replace(self, steps=(*self.steps, text))

    def to(self, flow: Flow) -> "Branch":
        """The branch with other headers or metadata."""
        return msgspec.structs.replace(self, flow=flow)

    def end(self, verdict: PacketVerdict, reason: str = "") -> "Branch":
        """The branch at its end."""
        return msgspec.structs.replace(self, verdict=verdict, reason=reason)

    def fork(self, rule: str) -> tuple["Branch", "Branch"]:
        """Return the branch if a rule that is not modelled matches, and if it does not."""
        return (
            msgspec.structs.replace(self, assumed=(*self.assumed, (rule, True))),
            msgspec.structs.replace(self, assumed=(*self.assumed, (rule, False))),
        )

    def assumption(self, rule: str) -> bool | None:
        """What was assumed about a rule before; None if nothing."""
        return next((way for each, way in self.assumed if each == rule), None)

    def may_fork(self) -> bool:
        """Whether one more rule can be assumed both ways; beyond this the outcome is unknown."""
        return len(self.assumed) < MOST_ASSUMPTIONS


MOST_ASSUMPTIONS = 6
"""Greatest number of rules on one way that are assumed both ways: each doubles the branches."""

IGNORED = 1e-12
"""Branches of less probability are left out."""


class HookChain(Interface):
    """The rules that one program registers at one hook."""

    @property
    def hook(self) -> Hook:
        """Where packets meet it."""

    @property
    def priority(self) -> int:
        """Its place among the others of the hook; lower ones come first."""

    @property
    def table(self) -> str:
        """The table, with the family for one of nftables, such as `ip nat`."""

    @property
    def translates(self) -> bool:
        """Whether it is for the translation of addresses: asked once, for a connection's first packet."""

    def walk(self, branch: Branch, routing: Routing) -> Sequence[Branch]:
        """The ways out of it; the verdict is None where the packet goes on."""


class RulesByHandle(Interface):
    """Rules of tables such as `ip filter` that their reader can run one by one."""

    def mixed(self, table: str, chain: str) -> Sequence[int]:
        """The handles of the rules of a chain that has some which another reader misreads; else none."""

    def run(
        self, table: str, chain: str, handle: int, branch: Branch, routing: Routing
    ) -> Sequence[tuple[Branch, str, str]] | None:
        """Run the rule of a chain with a handle: the branches that follow, each with a verdict and its chain.

        The verdict is "" for the next rule. None if there is no such rule.
        """


class SharedRules:
    """Rules in a table of one reader that only another reader can read: one offers them, the other runs them.

    iptables-nft prints only the handle of a rule that was written with nft.
    """

    def __init__(self) -> None:
        self._offered: RulesByHandle | None = None

    def offer(self, rules: RulesByHandle) -> None:
        """Run rules by these from now on."""
        self._offered = rules

    def handles(self, table: str, chain: str) -> Sequence[int]:
        """See RulesByHandle.mixed."""
        return () if self._offered is None else self._offered.mixed(table, chain)

    def run(
        self, table: str, chain: str, handle: int, branch: Branch, routing: Routing
    ) -> Sequence[tuple[Branch, str, str]] | None:
        """See RulesByHandle.run."""
        return None if self._offered is None else self._offered.run(table, chain, handle, branch, routing)


def outcomes_of(branches: Sequence[Branch]) -> tuple[Outcome, ...]:
    """What becomes of the packet; what depends on a rule that is not modelled is UNKNOWN and quotes it.

    Every such rule is considered both ways: what is the same in both is known.
    """
    rule = next((rule for branch in branches for rule, _ in branch.assumed), None)
    if rule is None:
        return merged([_outcome(branch) for branch in branches if branch.probability > IGNORED])
    both = [
        outcomes_of([_settled(branch, rule) for branch in branches if (rule, not way) not in branch.assumed])
        for way in (True, False)
    ]
    return _common(rule, *both)


def _settled(branch: Branch, rule: str) -> Branch:
    assumed = tuple(each for each in branch.assumed if each[0] != rule)
    return msgspec.structs.replace(branch, assumed=assumed)


def _outcome(branch: Branch) -> Outcome:
    flow = branch.flow
    verdict = branch.verdict or PacketVerdict.UNTOUCHED
    endpoint = join_host_port(flow.destination, flow.port) if verdict is PacketVerdict.FORWARD else None
    masquerade = verdict is PacketVerdict.FORWARD and flow.masqueraded
    return Outcome(verdict, branch.probability, endpoint, masquerade, branch.steps, branch.reason)


def _common(rule: str, first: Sequence[Outcome], second: Sequence[Outcome]) -> tuple[Outcome, ...]:
    """What two lists of outcomes have in common, and the rest as unknown because of a rule."""
    others = {_key(outcome): outcome for outcome in second}
    found = []
    for outcome in first:
        other = others.get(_key(outcome))
        if other is not None:
            probability = min(outcome.probability, other.probability)
            found.append(msgspec.structs.replace(outcome, probability=probability))
    rest = 1 - sum(outcome.probability for outcome in found)
    if rest > 1e-9:
        known = {_key(outcome) for outcome in found}
        steps = next((o.steps for o in (*first, *second) if _key(o) not in known), ())
        found.append(Outcome(PacketVerdict.UNKNOWN, rest, steps=steps, reason=f"not modelled: {rule}"))
    return merged(found)


def _key(outcome: Outcome) -> tuple[PacketVerdict, str | None, bool]:
    return outcome.verdict, outcome.endpoint, outcome.masquerade
