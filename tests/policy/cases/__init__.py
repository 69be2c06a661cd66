"""The hand-written part of the truth table: policies, changed objects, and flows with their verdicts."""

from tests.policy.cases import blocks, ends, isolation, peers, pods, ports, unreadable
from tests.policy.cases.case import Case

ALL: tuple[Case, ...] = (
    *isolation.CASES,
    *peers.CASES,
    *blocks.CASES,
    *ports.CASES,
    *ends.CASES,
    *pods.CASES,
    *unreadable.CASES,
)

__all__ = ["ALL", "Case"]
