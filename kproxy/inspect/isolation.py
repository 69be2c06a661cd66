"""What isolates pods and what they may do, as the agent sends it and as `kproxy policies` prints it."""

from collections.abc import Iterable, Iterator, Mapping
from urllib.parse import urlencode

import msgspec

from kproxy.inspect.agent_client import get_local
from kproxy.plan.policy.describe import PodPolicies
from kproxy.plan.policy.model import Direction
from kproxy.plan.policy.planner import PolicyPlanner
from kproxy.text import clean_all, clean_lines

PATH = "/policies"

_LONGEST = 4096


class PodUnknown(ValueError):
    """The pod is not known; the message names it."""


class PodIsolation(msgspec.Struct, frozen=True):
    """A pod of this node, and the policies that isolate it in each direction; none: it is not isolated.

    `problems` are those of these policies that cannot be obeyed, and so allow nothing, with the reasons.
    """

    pod: str
    addresses: tuple[str, ...]
    ingress: tuple[str, ...]
    egress: tuple[str, ...]
    problems: dict[str, tuple[str, ...]]


class PodAnswer(msgspec.Struct, frozen=True):
    """What holds for one pod, and the problems of the policies that select it."""

    policies: PodPolicies
    problems: dict[str, tuple[str, ...]]

    def json(self) -> bytes:
        """The answer as JSON, indented."""
        return _json(msgspec.to_builtins(self.policies) | {"problems": self.problems})

    def text(self) -> str:
        """The answer for people."""
        return clean_lines("\n".join((*self.policies.lines(), *_problems(self.problems))), _LONGEST)


class PodList(msgspec.Struct, frozen=True):
    """All pods of this node that have an address of their own, by name."""

    pods: tuple[PodIsolation, ...]

    def json(self) -> bytes:
        """The list as JSON, indented."""
        return _json(msgspec.to_builtins(self.pods))

    def text(self) -> str:
        """A line for each pod, and one for each problem."""
        head = ("POD", "ADDRESSES", "INGRESS", "EGRESS")
        rows = [
            (each.pod, ", ".join(each.addresses), _isolating(each.ingress), _isolating(each.egress))
            for each in self.pods
        ]
        problems = {key: texts for each in self.pods for key, texts in each.problems.items()}
        return clean_lines("\n".join((*_table((head, *rows)), *_problems(problems))), _LONGEST)


def describe_all(planner: PolicyPlanner) -> PodList:
    """All pods of the planner's node."""
    local = {pod for table in planner.tables.values() for pod in table.local.values()}
    found = []
    for pod in sorted(local):
        described = planner.policies_of(pod)
        if described is None:
            continue
        by = {each.direction: each.policies for each in described.directions}
        found.append(
            PodIsolation(
                pod,
                described.addresses,
                by[Direction.INGRESS],
                by[Direction.EGRESS],
                _closed(described, planner.problems),
            )
        )
    return PodList(tuple(found))


def describe_one(planner: PolicyPlanner, pod: str) -> PodAnswer:
    """One pod, also of another node. Raises PodUnknown."""
    described = planner.policies_of(pod)
    if described is None:
        raise PodUnknown(f"pod {pod} is not known")
    return PodAnswer(described, _closed(described, planner.problems))


def fetch_all() -> PodList:
    """Ask the kproxy of this network namespace. Raises AgentUnavailable, AgentRefused."""
    return get_local(PATH, PodList)


def fetch_one(pod: str) -> PodAnswer:
    """Ask the kproxy of this network namespace about a pod. Raises AgentUnavailable, AgentRefused."""
    return get_local(f"{PATH}?{urlencode({'pod': pod})}", PodAnswer)


def _closed(described: PodPolicies, problems: Mapping[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    closed = sorted({key for each in described.directions for key in each.closed})
    return {key: problems.get(key, ()) for key in closed}


def _isolating(policies: Iterable[str]) -> str:
    return ", ".join(policies) or "not isolated"


def _problems(problems: Mapping[str, tuple[str, ...]]) -> Iterator[str]:
    for key, texts in problems.items():
        yield f"{key} cannot be obeyed, and allows nothing: {'; '.join(texts)}"


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    listed = tuple(rows)
    widths = [max(map(len, column)) for column in zip(*listed, strict=True)]
    for row in listed:
        yield "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(clean_all(value)), indent=2) + b"\n"
