"""Compare what is desired with what the kernel would do, by endpoint, and name the rule that differs.

Small deviations of shares are none: the kernel rounds probabilities. With session affinity one endpoint may
have all connections of a client, and a scheduler such as least connection decides by what is going on now, so
there only the set of endpoints counts. Where a rule is not modelled, only what is certain is compared.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import join_host_port
from kproxy.backends.policy.names import TABLE
from kproxy.inspect.explain.report import Desired, Report, Way
from kproxy.plan.outcomes import PacketVerdict

TOLERANCE = 0.01
"""Shares that differ by less are equal; 31 bits and slots round to far less for usual weights."""

_NAMED = 3
"""Endpoints that one difference names."""

_TRANSLATES = re.compile(r"\bdnat\b|->", re.IGNORECASE)
_MASQUERADES = re.compile(r"\bmasquerade\b|\bsnat\b", re.IGNORECASE)

_OF_POLICIES = re.compile(rf"^ip6? {re.escape(TABLE)} ")

_SHARED = re.compile(rf"^ip6? {re.escape(TABLE)} refused-")

_DESIRED = {
    PacketVerdict.FORWARD: "forwarded to an endpoint",
    PacketVerdict.REJECT: "refused",
    PacketVerdict.DROP: "dropped",
    PacketVerdict.UNTOUCHED: "left as it is",
}
_ACTUAL = {
    PacketVerdict.REJECT: "is refused",
    PacketVerdict.DROP: "is dropped",
    PacketVerdict.UNTOUCHED: "is not translated or refused by any rule",
}


class _Result(msgspec.Struct):
    """The probability of one result, and the likeliest way to it."""

    probability: float
    way: Way


def with_differences(report: Report) -> Report:
    """The report with every difference between its desired and its actual outcomes."""
    if report.actual is None:
        return report
    return msgspec.structs.replace(report, differences=tuple(_differences(report, report.actual.outcomes)))


def percent(probability: float) -> str:
    """A probability as people read it: `50 %`, `0.4 %`."""
    value = probability * 100
    text = f"{value:.0f}" if value >= 10 or round(value, 1).is_integer() else f"{value:.1f}"
    return f"{text} %"


def _differences(report: Report, actual: Iterable[Way]) -> Iterator[str]:
    desired = report.desired
    wanted, have = _by_result(desired.outcomes), _by_result(actual)
    unknown = have.pop(PacketVerdict.UNKNOWN, None)
    uncertain = unknown is not None and unknown.probability > TOLERANCE
    ends = {each: result for each, result in have.items() if _is_endpoint(each)}
    refused = not ends and have.keys() <= wanted.keys()  # at the endpoint that is remembered
    remembered = desired.affinity and (len(ends) == 1 or refused)
    lacking = [] if uncertain or remembered else [e for e in wanted if _is_endpoint(e) and e not in have]
    clear = True
    for end, result in ends.items():
        if end not in wanted:
            clear = False
            yield _wrong_end(end, result, report, lacking)
    for verdict, result in have.items():
        if _is_endpoint(verdict):
            continue
        expected = wanted[verdict].probability if verdict in wanted else 0.0
        excess = result.probability - expected
        if (expected and not lacking) or excess <= (TOLERANCE if expected else 0):
            continue
        clear = False
        yield _wrong_verdict(
            _Result(excess, result.way), report, {end: wanted[end].probability for end in lacking}
        )
        lacking = []
    for end in lacking:
        clear = False
        yield f"no rule leads to {end}, which should get {percent(wanted[end].probability)}"
    for end, result in ends.items():
        if end in wanted and result.way.masquerade != wanted[end].way.masquerade:
            yield _masquerade(end, result.way)
    if clear and not uncertain and not remembered and not desired.scheduler:
        yield from _shares(wanted, ends)


def _by_result(ways: Iterable[Way]) -> dict[str, _Result]:
    """Probabilities by endpoint or, if there is none, by verdict."""
    found: dict[str, _Result] = {}
    for way in sorted(ways, key=lambda each: -each.probability):
        result = found.setdefault(way.endpoint or way.verdict, _Result(0.0, way))
        result.probability += way.probability
    return found


def _refusal_of(destination: str, report: Report) -> str:
    """Why policies refuse what goes to `ip:port`; "" if they do not."""
    for each in report.policies:
        if not each.allowed and join_host_port(each.ip, each.port) == destination:
            return f"{each.direction} of {each.pod} is isolated by {', '.join(each.policies)}"
    return ""


def _let_through(destination: str, way: Way, refusal: str) -> str:
    """What should have been refused by policies, and the last rule of theirs that it passed."""
    step = next((each for each in reversed(way.steps or ()) if _OF_POLICIES.search(each)), "")
    by = f"by {step}" if step else "by every rule of NetworkPolicies"
    return f"what goes to {destination} is let through {by}, but should be refused: {refusal}"


def _is_endpoint(result: str) -> bool:
    return ":" in result


def _wrong_end(end: str, result: _Result, report: Report, lacking: list[str]) -> str:
    desired = report.desired
    if refusal := _refusal_of(end, report):
        return _let_through(end, result.way, refusal)
    step = step_of(result.way, _TRANSLATES)
    if lacking:
        return f"{step} leads to {end}, not to {lacking.pop(0)}"
    if all(each.verdict is PacketVerdict.FORWARD for each in desired.outcomes):
        return f"{step} leads to {end}, which is not desired"
    return f"{step} leads to {end}, but the packet should be {_expected(desired, result.way)}"


def _wrong_verdict(result: _Result, report: Report, lacking: Mapping[str, float]) -> str:
    way = result.way
    destination = join_host_port(report.destination.ip, report.destination.port)
    refusal = _refusal_of(destination, report)
    if way.verdict is PacketVerdict.UNTOUCHED and refusal:
        return _let_through(destination, way, refusal)
    what = "the packet"
    if result.probability <= 1 - TOLERANCE:
        exactly = abs(sum(lacking.values()) - result.probability) <= TOLERANCE
        ends = f", what should go to {', '.join(list(lacking)[:_NAMED])}," if lacking and exactly else ""
        what = f"{percent(result.probability)} of connections{ends}"
    where = f" by {_deciding(way.steps)}" if way.steps and way.verdict is not PacketVerdict.UNTOUCHED else ""
    is_step = way.reason and (way.reason in where or way.reason in (way.steps or ()))
    reason = f" ({way.reason})" if way.reason and not is_step else ""
    return f"{what} {_ACTUAL[way.verdict]}{where}{reason}, but should be {_expected(report.desired, way)}"


def _deciding(steps: Sequence[str]) -> str:
    """The last step; of policies, that of the group, which all groups follow by the same chains."""
    return next((each for each in reversed(steps) if not _SHARED.search(each)), steps[-1])


def _expected(desired: Desired, instead: Way) -> str:
    """What should become of the packet instead of this."""
    ways = desired.outcomes
    other = next((each for each in ways if each.verdict is not instead.verdict), ways[0])
    return _DESIRED[other.verdict]


def _masquerade(end: str, way: Way) -> str:
    if way.masquerade:
        return f"{step_of(way, _MASQUERADES)} masquerades what goes to {end}; the source should be kept"
    return f"what goes to {end} keeps its source, but should be masqueraded"


def _shares(wanted: Mapping[str, _Result], have: Mapping[str, _Result]) -> Iterator[str]:
    for end, result in have.items():
        expected = wanted[end].probability
        if abs(result.probability - expected) > TOLERANCE:
            step = step_of(result.way, _TRANSLATES)
            yield f"{end} gets {percent(result.probability)}, not {percent(expected)}: {step}"


def step_of(way: Way, pattern: re.Pattern[str]) -> str:
    """The last step that a pattern finds, in short: table and chain; the last one if it finds none."""
    steps = way.steps or ()
    found = next((each for each in reversed(steps) if pattern.search(each)), steps[-1] if steps else "")
    return found.partition(":")[0] if found else "a rule"
