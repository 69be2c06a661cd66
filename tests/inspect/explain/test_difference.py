"""Desired and actual outcomes are compared by endpoint; each difference names the rule."""

import msgspec
import pytest

from kproxy.inspect.explain.difference import percent, with_differences
from kproxy.inspect.explain.report import Desired, Report, actual_of
from kproxy.plan.outcomes import Outcome, PacketVerdict
from tests.builders import endpoint_slice, service
from tests.inspect.explain.clusters import cluster, explain

FIRST, SECOND = "10.244.1.12:80", "10.244.2.7:80"
TO_FIRST, TO_SECOND = (
    "nat KUBE-SEP-A: -j DNAT --to-destination 1",
    "nat KUBE-SEP-B: -j DNAT --to-destination 2",
)


def to(endpoint: str, probability: float = 0.5, *steps: str, masquerade: bool = False) -> Outcome:
    return Outcome(PacketVerdict.FORWARD, probability, endpoint, masquerade, ("nat PREROUTING: jump", *steps))


def found(*outcomes: Outcome, **desired: object) -> Report:
    """Compare with two endpoints of equal share; `desired` changes fields of that side."""
    report = explain(
        cluster([service(), endpoint_slice("10.244.1.12", "10.244.2.7")]), "10.244.1.10", "ns1/svc1"
    )
    side: Desired = msgspec.structs.replace(report.desired, **desired)
    return with_differences(msgspec.structs.replace(report, desired=side, actual=actual_of(outcomes)))


def test_equal_outcomes_have_no_difference() -> None:
    report = found(to(FIRST, 0.5000001), to(SECOND, 0.4999999))
    assert (report.differences, report.exit_code) == ((), 0)


def test_shares_that_the_kernel_rounds_are_no_difference_and_others_name_the_rule() -> None:
    assert found(to(FIRST, 0.504), to(SECOND, 0.496)).differences == ()
    report = found(to(FIRST, 0.7, TO_FIRST), to(SECOND, 0.3, TO_SECOND))
    assert report.differences == (
        f"{FIRST} gets 70 %, not 50 %: nat KUBE-SEP-A",
        f"{SECOND} gets 30 %, not 50 %: nat KUBE-SEP-B",
    )
    assert report.exit_code == 2


def test_another_endpoint_is_named_with_the_rule_and_the_one_that_it_replaces() -> None:
    report = found(to(FIRST), to("10.244.9.9:1", 0.5, TO_SECOND, "filter FORWARD: -j ACCEPT"))
    assert report.differences == (f"nat KUBE-SEP-B leads to 10.244.9.9:1, not to {SECOND}",)
    more = found(to(FIRST), to(SECOND, 0.4), to("10.244.9.9:1", 0.1, TO_SECOND))
    assert more.differences == ("nat KUBE-SEP-B leads to 10.244.9.9:1, which is not desired",)


def test_an_endpoint_without_a_rule_is_named() -> None:
    assert found(to(FIRST, 1.0)).differences == (f"no rule leads to {SECOND}, which should get 50 %",)


@pytest.mark.parametrize(
    ("verdict", "text"),
    [
        (
            PacketVerdict.DROP,
            "the packet is dropped by filter FORWARD: -j DROP, but should be forwarded to an endpoint",
        ),
        (
            PacketVerdict.REJECT,
            "the packet is refused by filter FORWARD: -j DROP, but should be forwarded to an endpoint",
        ),
        (
            PacketVerdict.UNTOUCHED,
            "the packet is not translated or refused by any rule, but should be forwarded to an endpoint",
        ),
    ],
)
def test_another_verdict_is_named_with_its_rule(verdict: PacketVerdict, text: str) -> None:
    report = found(Outcome(verdict, steps=("nat PREROUTING: x", "filter FORWARD: -j DROP")))
    assert report.differences == (text,)


def test_a_part_that_is_dropped_is_a_difference_of_its_own() -> None:
    report = found(to(FIRST), Outcome(PacketVerdict.DROP, 0.5, steps=("filter FORWARD: -d 2 -j DROP",)))
    (text,) = report.differences
    assert text.startswith(
        f"50 % of connections, what should go to {SECOND}, is dropped by filter FORWARD: -d 2"
    )


def test_masquerading_counts_in_both_directions() -> None:
    step = "nat POSTROUTING: -j MASQUERADE"
    report = found(to(FIRST), to(SECOND, 0.5, TO_SECOND, step, masquerade=True))
    assert report.differences == (
        f"nat POSTROUTING masquerades what goes to {SECOND}; the source should be kept",
    )
    outcomes = tuple(msgspec.structs.replace(each, masquerade=True) for each in found().desired.outcomes)
    kept = found(to(FIRST, masquerade=True), to(SECOND), outcomes=outcomes)
    assert kept.differences == (f"what goes to {SECOND} keeps its source, but should be masqueraded",)


def test_a_remembered_client_has_one_endpoint_and_another_one_is_still_wrong() -> None:
    assert found(to(FIRST, 1.0), affinity=True).differences == ()
    assert found(to(FIRST, 0.7), to(SECOND, 0.3), affinity=True).differences != ()
    assert len(found(to("10.244.9.9:1", 1.0, TO_FIRST), affinity=True).differences) == 1


def test_shares_of_a_scheduler_do_not_count_but_its_endpoints_do() -> None:
    assert found(to(FIRST, 0.9), to(SECOND, 0.1), scheduler="lc").differences == ()
    assert found(to(FIRST, 1.0), scheduler="lc").differences != ()


def test_what_is_unknown_is_no_difference_but_the_answer_is_unknown() -> None:
    unknown = Outcome(PacketVerdict.UNKNOWN, 0.5, reason="filter FORWARD: -m strange")
    report = found(to(FIRST), unknown)
    assert (report.differences, report.exit_code) == ((), 1)
    wrong = found(to("10.244.9.9:1", 0.5, TO_FIRST), unknown)
    assert (len(wrong.differences), wrong.exit_code) == (1, 2)


def test_a_refusal_in_both_has_its_exit_code() -> None:
    refusal = Outcome(PacketVerdict.REJECT)
    report = explain(cluster([service()]), "10.244.1.10", "ns1/svc1")
    both = with_differences(msgspec.structs.replace(report, actual=actual_of([refusal])))
    assert (both.differences, both.exit_code) == ((), 3)
    dropped = with_differences(
        msgspec.structs.replace(report, actual=actual_of([Outcome(PacketVerdict.DROP)]))
    )
    assert (dropped.differences, dropped.exit_code) == (("the packet is dropped, but should be refused",), 2)
    open_ = with_differences(msgspec.structs.replace(report, actual=actual_of([to(FIRST, 1.0, TO_FIRST)])))
    assert open_.differences == (f"nat KUBE-SEP-A leads to {FIRST}, but the packet should be refused",)


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100 %"), (0.5, "50 %"), (1 / 3, "33 %"), (0.004, "0.4 %"), (0.05, "5 %")]
)
def test_probabilities_are_read_as_percentages(value: float, text: str) -> None:
    assert percent(value) == text
