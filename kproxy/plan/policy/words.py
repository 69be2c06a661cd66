"""Rules in words, as `kproxy policies`, refused flows and explanations show them."""

from collections.abc import Sequence

from kproxy.plan.model import Protocol
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.pods import PodEntry
from kproxy.plan.policy.rules import Rule

_SHOWN = 5
"""Peers or ports of one rule that are listed; the rest is counted."""


def ports_in_words(rule: Rule, destination: PodEntry | None) -> str:
    """`TCP 80, UDP 53`, or `every port`; names have the numbers that they mean at the destination."""
    if not rule.ports:
        return "every port"
    texts = []
    for each in rule.ports:
        text = str(each)
        if each.name and destination is not None:
            numbers = destination.numbers(each.name, each.protocol)
            text += f" ({', '.join(map(str, numbers))})" if numbers else f" (not a port of {destination.key})"
        texts.append(text)
    return _listed(texts)


def peers_in_words(rule: Rule) -> str:
    """`pods app=web in shop or 10.0.0.0/8 except 10.1.0.0/16`, or `everyone`."""
    if rule.anyone:
        return "everyone"
    return _listed([*map(str, rule.pods), *map(str, rule.blocks)], " or ")


def rule_in_words(rule: Rule, direction: Direction, destination: PodEntry | None = None) -> str:
    """What a rule allows: `TCP 80 from pods app=web in shop`."""
    preposition = "from" if direction is Direction.INGRESS else "to"
    return f"{ports_in_words(rule, destination)} {preposition} {peers_in_words(rule)}"


def flow_port(protocol: Protocol, port: int) -> str:
    """`TCP 80`."""
    return f"{protocol} {port}"


def listed(keys: Sequence[str]) -> str:
    """Some keys, and how many there are besides."""
    return _listed(list(keys))


def _listed(texts: Sequence[str], separator: str = ", ") -> str:
    more = len(texts) - _SHOWN
    shown = separator.join(texts[:_SHOWN])
    return f"{shown} and {more} more" if more > 0 else shown
