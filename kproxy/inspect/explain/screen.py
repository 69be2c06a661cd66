"""Print a report for people: one line an outcome, and the kernel's way through chains."""

import re
from collections.abc import Iterable, Iterator, Sequence

from kproxy.addresses import join_host_port
from kproxy.inspect.changes import clock
from kproxy.inspect.explain.difference import percent
from kproxy.inspect.explain.frontends import KIND_WORDS
from kproxy.inspect.explain.report import Excluded, Report, Way
from kproxy.plan.outcomes import PacketVerdict
from kproxy.plan.topology import Reason
from kproxy.text import clean_lines

_INDENT = "  "
_MOST = 50
"""Outcomes printed; JSON has all of them."""

_MOST_EXCLUDED = 20
"""Excluded endpoints printed of each reason."""

_MOST_WAYS = 5
"""Ways through the kernel's chains printed without --rules."""

_DIGEST = re.compile(r"(?<=-)([A-Z2-7]{4})[A-Z2-7]{12}\b")
"""The hash in the name of a chain, of which four characters are shown."""

_VERDICTS = {
    PacketVerdict.REJECT: "refused",
    PacketVerdict.DROP: "dropped",
    PacketVerdict.UNTOUCHED: "passes: nothing of kproxy's acts on it",
    PacketVerdict.UNKNOWN: "unknown",
}


def screen(report: Report, *, rules: bool = False) -> str:
    """The report as text; with `rules`, each rule on the way of each outcome."""
    return clean_lines("\n".join(_lines(report, rules=rules)), 4096) + "\n"


def _lines(report: Report, *, rules: bool) -> Iterator[str]:
    yield _head(report)
    yield from _section("policy", report.desired.policy)
    yield from _section("answers", _answers(report.desired.outcomes, report.node))
    yield from _section("excluded", _excluded(report))
    yield from _section("conflict", report.conflicts)
    yield from _section("kernel", _kernel(report, rules=rules))
    yield from _section("since", _since(report))
    yield from _section("note", report.notes)


def _section(name: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        yield f"{_INDENT}{'' if number else name:<10}{line}"


def _head(report: Report) -> str:
    destination = join_host_port(report.destination.ip, report.destination.port)
    start = f"{report.source.ip} → {destination}/{report.protocol}"
    front = report.frontend
    if front is None:
        return f"{start:<38}  no Service"
    return f"{start:<38}  {front.service}:{front.port}, {KIND_WORDS[front.kind]}"


def _answers(ways: Iterable[Way], node: str) -> Iterator[str]:
    table = [
        (
            f"{percent(way.probability):>5}",
            way.endpoint or "",
            (way.pod or "").rpartition("/")[2],
            _place(way.node or "", way.zone or "", node),
            (way.reason or "masqueraded") if way.masquerade else "",
        )
        if way.verdict is PacketVerdict.FORWARD
        else (_share(way), _VERDICTS[way.verdict] + (f": {way.reason}" if way.reason else ""))
        for way in ways
    ]
    yield from _columns(table[:_MOST])
    if len(table) > _MOST:
        yield f"and {len(table) - _MOST} more"


def _share(way: Way) -> str:
    """The share of a way without an endpoint, if there are others."""
    return f"{percent(way.probability):>5}" if way.probability < 1 else ""


def _place(name: str, zone: str, here: str) -> str:
    if name and name == here:
        return "this node"
    return ", ".join(each for each in (name, f"zone {zone}" if zone else "") if each)


def _columns(table: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Rows in columns; a row that is shorter than others ends with a text of any length."""
    most = max(map(len, table), default=0)
    widths = [
        max((len(row[at]) for row in table if at < len(row) and at < _aligned(row, most)), default=0)
        for at in range(most)
    ]
    for row in table:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False) if width or cell]
        yield "  ".join(cells).rstrip()


def _aligned(row: Sequence[str], most: int) -> int:
    return len(row) if len(row) == most else len(row) - 1


def _excluded(report: Report) -> Iterator[str]:
    shown: list[tuple[str, ...]] = []
    left: dict[str, int] = {}
    count: dict[str, int] = {}
    others = [each for each in report.excluded if each.reason == Reason.FAMILY.value]
    for each in report.excluded:
        if each.reason == Reason.FAMILY.value:
            continue
        count[each.reason] = count.get(each.reason, 0) + 1
        if count[each.reason] > _MOST_EXCLUDED:
            left[each.reason] = left.get(each.reason, 0) + 1
        else:
            shown.append((each.endpoint, each.pod.rpartition("/")[2], _reason(each, report)))
    yield from _columns(shown)
    for reason, number in left.items():
        yield f"and {number} more: {reason}"
    if others:
        yield f"{len(others)} of {others[0].detail} slices: {Reason.FAMILY.value}"


def _reason(each: Excluded, report: Report) -> str:
    match each.reason:
        case Reason.HINT.value:
            here = (
                f"is {report.node}"
                if each.detail.startswith("nodes")
                else f"is in {report.zone or 'no zone'}"
            )
            return f"hint: {each.detail}, this node {here}"
        case Reason.TERMINATING.value:
            return f"terminating, and {each.detail}"
        case Reason.DUPLICATE.value:
            return f"duplicate {each.detail}"
    return f"{each.reason}: {each.detail}" if each.detail else each.reason


def _kernel(report: Report, *, rules: bool) -> Iterator[str]:
    if report.actual is None:
        return
    ways = report.actual.outcomes
    unknown = [way for way in ways if way.verdict is PacketVerdict.UNKNOWN]
    for difference in report.differences:
        yield f"DIFFERS: {difference if rules else _short(difference)}"
    for way in unknown:
        yield f"cannot tell ({percent(way.probability)}): {way.reason or 'a rule is not modelled'}"
    if not report.differences and not unknown:
        yield "agrees"
    for way in ways if rules else ways[:_MOST_WAYS]:
        target = f"{percent(way.probability)} {way.endpoint or _VERDICTS.get(way.verdict, way.verdict)}"
        if rules:
            yield target
            yield from (f"  {step}" for step in way.steps or ())
        elif chains := _chains(way):
            yield _short(f"{' → '.join(chains)} → {target}")
    if len(ways) > _MOST_WAYS and not rules:
        yield f"and {len(ways) - _MOST_WAYS} more (--rules prints each rule)"


def _short(text: str) -> str:
    return _DIGEST.sub(r"\1…", text)


def _chains(way: Way) -> list[str]:
    """The chains on the way, each once in a row, without their tables."""
    found: list[str] = []
    for step in way.steps or ():
        place = step.partition(":")[0]
        name = place if place.endswith(" table") else place.rpartition(" ")[2]
        if not found or found[-1] != name:
            found.append(name)
    return found


def _since(report: Report) -> Iterator[str]:
    since = report.since
    if since is None:
        return
    start = f"revision {since.revision}, " if since.revision else ""
    if since.applied is None:
        yield f"{start}arrived at {clock(since.arrived)}, and not in the kernel yet"
        return
    after = round((since.applied - since.arrived).total_seconds() * 1000)
    yield f"{start}in the kernel at {clock(since.applied)}, {after} ms after it arrived"
