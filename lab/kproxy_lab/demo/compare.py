"""Compares outcomes with expectations, and summarizes them for the screen."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from kproxy_lab.demo.expect import Question, Source
from kproxy_lab.lab.clients import Answer, AskError, tally

SIGMAS: Final = 6
"""Accepted distance from an equal share, in standard deviations of a fair choice: one error in 10^9."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The outcome of a question: answers per pod, sources that the pods saw, and deviations."""

    question: Question
    counts: Counter[str]
    own: tuple[str, ...]
    node: tuple[str, ...]
    wrong: tuple[str, ...]


def compare(
    question: Question, outcomes: Sequence[Answer | AskError], node_addresses: frozenset[str]
) -> Finding:
    """Compare outcomes with the question's expected answer."""
    counts = tally(outcomes)
    answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
    wrong = [*_wrong_answerers(question, counts), *_wrong_sources(question, answers, node_addresses)]
    if question.answers and question.sticky:
        wrong += _moved_clients(answers)
    elif question.answers:
        wrong += unfair_shares(counts, question.answers)
    seen = dict.fromkeys(answer.source_ip_seen for answer in answers)
    from_node = tuple(ip for ip in seen if ip in node_addresses)
    own = tuple(ip for ip in seen if ip not in node_addresses)
    return Finding(question, counts, own, from_node, tuple(wrong))


def unfair_shares(counts: Mapping[str, int], pods: Iterable[str]) -> list[str]:
    """Return the pods whose share differs from an equal one by more than chance explains."""
    names = list(pods)
    total, share = sum(counts.values()), 1 / len(names)
    allowed = SIGMAS * math.sqrt(total * share * (1 - share))
    return [
        f"{name} answered {counts.get(name, 0)} of {total}, a fair share is {total * share:.0f}"
        for name in names
        if abs(counts.get(name, 0) - total * share) > allowed
    ]


def _wrong_answerers(question: Question, counts: Mapping[str, int]) -> list[str]:
    allowed = set(question.answers) or {str(question.otherwise)}
    wrong = [f"{name} {count} times" for name, count in sorted(counts.items()) if name not in allowed]
    if not wrong:
        return []
    return [f"got {', '.join(wrong)}; expected {', '.join(sorted(allowed))} only"]


def _wrong_sources(
    question: Question, answers: Iterable[Answer], node_addresses: frozenset[str]
) -> list[str]:
    found: dict[str, None] = {}
    for answer in answers:
        expected = question.answers.get(answer.pod)
        own = answer.source_ip_seen == answer.local_ip
        if expected is Source.OWN and not own:
            found[f"{answer.pod} saw {answer.source_ip_seen}, not the client's own {answer.local_ip}"] = None
        elif expected is Source.NODE and answer.source_ip_seen not in node_addresses:
            found[f"{answer.pod} saw {answer.source_ip_seen}, which is no address of the node"] = None
    return list(found)


def _moved_clients(answers: Iterable[Answer]) -> list[str]:
    met: dict[str, set[str]] = {}
    for answer in answers:
        met.setdefault(answer.local_ip, set()).add(answer.pod)
    return [f"{ip} met {', '.join(sorted(pods))}" for ip, pods in met.items() if len(pods) > 1]
