"""Whether a new mode may take over: it serves every family, has facts, and its first sync gets somewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from kproxy.addresses import Family
from kproxy.agent.family_sync import SyncOutcome
from kproxy.agent.mode_switch import failure_reason, make_mode
from kproxy.backends.core.base import SyncReport, quarantined
from kproxy.modes.base import ModeUnavailable
from tests.agent.switch_rig import CONFIG
from tests.builders import endpoint_slice, plan_of, service

V4, V6 = Family.IPV4, Family.IPV6
WEB, DB = (plan_of(service(name), endpoint_slice("10.1.0.1", service=name)) for name in ("web", "db"))
HEADLESS = plan_of(service("headless", "None"))


def mode(*families: Family) -> Any:
    return SimpleNamespace(families=families)


def made(new: Any, old: Any, facts: object) -> object:
    modes: Any = SimpleNamespace(make=lambda _: new)
    tracker: Any = SimpleNamespace(facts=lambda _: facts)
    return make_mode(modes, CONFIG, old, tracker)


def test_a_mode_that_serves_as_much_as_the_old_one_takes_over() -> None:
    facts = object()
    for new, old in ((mode(V4, V6), mode(V4)), (mode(V4), mode(V4)), (mode(V4, V6), mode(V4, V6))):
        assert made(new, old, facts) == (new, facts)


@pytest.mark.parametrize(
    ("new", "old", "facts", "reason"),
    [
        (mode(V4), mode(V4, V6), object(), "it cannot serve IPv6 here"),
        (mode(), mode(V4, V6), object(), "it cannot serve IPv4, IPv6 here"),
        (mode(V4, V6), mode(V4, V6), None, "the node has no pod CIDRs yet"),
    ],
)
def test_a_mode_that_would_serve_less_does_not(new: Any, old: Any, facts: object, reason: str) -> None:
    with pytest.raises(ModeUnavailable, match=reason):
        made(new, old, facts)


def outcome(*plans: Any, failed: dict[str, str] | None = None, error: str | None = None) -> SyncOutcome:
    report = SyncReport(quarantined(failed or {}), error=error)
    return SyncOutcome({plan.key: plan for plan in plans}, report, 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "refused", "reason"),
    [
        ({V4: outcome(WEB, DB)}, {}, None),
        ({V4: outcome()}, {}, None),
        ({V4: outcome(HEADLESS)}, {}, None),
        ({V4: outcome(error="no chain")}, {}, "IPv4: no chain"),
        (
            {V4: outcome(error="no chain"), V6: outcome(error="no table")},
            {},
            "IPv4: no chain; IPv6: no table",
        ),
        ({V4: outcome(WEB, DB, failed={"ns1/web": "x"})}, {}, None),
        (
            {V4: outcome(WEB, DB, failed={"ns1/web": "x", "ns1/db": "y"})},
            {},
            "IPv4: every service was refused, the first ns1/db: y",
        ),
        (
            {V4: outcome(WEB, HEADLESS, failed={"ns1/web": "x"})},
            {V6: ["ns1/web"]},
            "IPv4: every service was refused, the first ns1/web: x",
        ),
        ({V4: outcome(WEB, failed={"ns1/web": "x"})}, {V4: ["ns1/web"]}, None),
        (
            {V4: outcome(WEB, DB, failed={"ns1/web": "x", "ns1/db": "y"})},
            {V4: ["ns1/web"]},
            "IPv4: every service was refused, the first ns1/db: y",
        ),
        ({V4: outcome(WEB, failed={"ns1/web": "x", "ns1/other": "y"})}, {V4: []}, "IPv4: every service was"),
    ],
)
def test_a_first_sync_fails_where_nothing_works_that_worked_before(
    found: dict[Family, SyncOutcome], refused: dict[Family, list[str]], reason: str | None
) -> None:
    said = failure_reason(found, refused)
    if reason is None:
        assert said is None
    else:
        assert said is not None
        assert said.startswith(reason)
