"""Say what isolates a pod and what it may do, for `kproxy policies`."""

from collections.abc import Sequence

import msgspec

from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.pods import PodEntry
from kproxy.plan.policy.rules import Policy
from kproxy.plan.policy.words import listed, rule_in_words


class AllowedRule(msgspec.Struct, frozen=True):
    """A rule and what it allows, such as `TCP 80 from pods app=web in shop`."""

    origin: str
    allows: str


class DirectionPolicies(msgspec.Struct, frozen=True):
    """What holds for a pod in one direction; without `policies` it is not isolated, and everything passes.

    `closed` are those of `policies` that cannot be obeyed and allow nothing. `everything` is the origin of
    the first rule that allows all traffic, or "".
    """

    direction: Direction
    policies: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    rules: tuple[AllowedRule, ...] = ()
    everything: str = ""


class PodPolicies(msgspec.Struct, frozen=True):
    """A pod and what holds for it. `note` says why it has no address of its own, and so no policies in force.

    Policies of a pod that is not `local` are enforced by its own node.
    """

    pod: str
    addresses: tuple[str, ...]
    local: bool
    note: str
    directions: tuple[DirectionPolicies, ...]

    def lines(self) -> list[str]:
        """The same for people."""
        where = "on this node" if self.local else "on another node"
        lines = [f"{self.pod}: {', '.join(self.addresses) or self.note}, {where}"]
        for each in self.directions:
            lines += _lines(each)
        return lines


def describe_pod(pod: PodEntry, policies: Sequence[Policy]) -> PodPolicies:
    """Describe a pod; `policies` are those that select it, sorted by key."""
    directions = tuple(_describe(direction, pod, policies) for direction in Direction)
    return PodPolicies(pod.key, pod.addresses, pod.local, pod.note, directions)


def _describe(direction: Direction, pod: PodEntry, policies: Sequence[Policy]) -> DirectionPolicies:
    isolating = [each for each in policies if direction in each.directions]
    rules = [rule for policy in isolating for rule in policy.rules(direction)]
    destination = pod if direction is Direction.INGRESS else None
    return DirectionPolicies(
        direction,
        tuple(each.key for each in isolating),
        tuple(each.key for each in isolating if each.problems),
        tuple(AllowedRule(each.origin, rule_in_words(each, direction, destination)) for each in rules),
        next((each.origin for each in rules if each.anyone and not each.ports), ""),
    )


def _lines(found: DirectionPolicies) -> list[str]:
    if not found.policies:
        return [f"  {found.direction}: not isolated"]
    lines = [f"  {found.direction}: isolated by {', '.join(found.policies)}"]
    if found.closed:
        lines.append(f"    {listed(found.closed)} cannot be obeyed and allows nothing")
    lines += [f"    {each.allows} ({each.origin})" for each in found.rules]
    if not found.rules:
        lines.append("    nothing is allowed")
    return lines
