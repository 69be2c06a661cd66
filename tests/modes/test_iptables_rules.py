"""Programs and tables that modes with iptables rules use: families that are served, and a first sync."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.backends.core.base import SyncReport, quarantined
from kproxy.config.model import ProxyConfig
from kproxy.kernel import nft_tables
from kproxy.kernel.ipvs.types import PERSISTENT, SCHED1, SCHED2, ServerId, VirtualServer
from kproxy.kernel.nft_tables import WakeError
from kproxy.kernel.processes import Runner
from kproxy.kernel.xtables.types import Variant, XtablesStalled, XtablesUnavailable
from kproxy.modes import iptables_rules as module
from kproxy.modes.base import ModeUnavailable, NoFamilyUsable, PreviewError
from kproxy.modes.iptables_rules import find_programs, find_tables, preparation, sync_once, watch_of
from kproxy.modes.ipvs.text import server_line
from tests.builders import NODE, endpoint_slice, given, service

V4, V6 = Family.IPV4, Family.IPV6
CONFIG = ProxyConfig(node_name="node-a")
NONE = XtablesUnavailable("iptables is not installed")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[Family, Any]:
    """What is found for each family: the programs, or an error."""
    programs: dict[Family, Any] = {}

    def find_tools(family: Family, *_: object, **__: object) -> Any:
        each = programs[family]
        if isinstance(each, Exception):
            raise each
        return each

    monkeypatch.setattr(module, "find_tools", find_tools)
    monkeypatch.setattr(module, "SubprocessXtables", lambda family, tools, **_: (family, tools))
    return programs


def tools(instead_of: str = "") -> Any:
    return SimpleNamespace(variant=Variant.NFT, version=(1, 8, 9), instead_of=instead_of)


def test_both_families_are_served_where_their_programs_work(found: dict[Family, Any]) -> None:
    found |= {V4: tools(), V6: tools("rules of legacy are in use")}
    with capture_logs() as logs:
        tables: Any = find_tables(CONFIG, Runner())
    assert tables == {family: (family, found[family]) for family in Family}
    assert [(each["family"], each["version"], each.get("reason")) for each in logs] == [
        ("IPv4", "1.8.9", None),
        ("IPv6", "1.8.9", "rules of legacy are in use"),
    ]
    assert find_programs(CONFIG) == found


def test_a_family_without_programs_is_left_out_with_a_warning(found: dict[Family, Any]) -> None:
    found |= {V4: tools(), V6: NONE}
    with capture_logs() as logs:
        assert list(find_tables(CONFIG, Runner())) == [V4]
    assert [(each["event"], each["log_level"]) for each in logs] == [
        ("iptables_found", "info"),
        ("family_unusable", "warning"),
    ]
    assert list(find_programs(CONFIG)) == [V4]


def test_without_any_family_there_is_no_mode(found: dict[Family, Any]) -> None:
    found |= {V4: NONE, V6: NONE}
    with pytest.raises(NoFamilyUsable, match="is not installed"):
        find_tables(CONFIG, Runner())
    with pytest.raises(PreviewError, match="IPv4: iptables is not installed; IPv6: iptables is not"):
        find_programs(CONFIG)


def test_a_family_whose_programs_stall_is_not_left_out(found: dict[Family, Any]) -> None:
    found |= {V4: tools(), V6: XtablesStalled("another program holds the lock")}
    with pytest.raises(ModeUnavailable, match="IPv6: another program holds the lock"):
        find_tables(CONFIG, Runner())


def tables_of(family: Family, variant: Variant) -> Any:
    return SimpleNamespace(family=family, variant=variant, generation=lambda: None)


def test_families_share_the_changes_of_one_ruleset_only() -> None:
    watches: dict[object, Any] = {}

    def watch(family: Family, variant: Variant) -> object:
        return watch_of(tables_of(family, variant), watches)

    assert watch(V4, Variant.NFT) is watch(V6, Variant.NFT)
    assert watch(V4, Variant.LEGACY) is watch(V4, Variant.LEGACY)
    assert (
        len({id(watch(V4, Variant.LEGACY)), id(watch(V6, Variant.LEGACY)), id(watch(V4, Variant.NFT))}) == 3
    )


@pytest.fixture
def prepared(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[Variant], tuple[Callable[[bool], None], list[Any]]]:
    """What runs before a write in a variant, and what it does; the results of waking come from the list."""

    def make(variant: Variant) -> tuple[Callable[[bool], None], list[Any]]:
        done: list[Any] = []
        failure = WakeError("no memory")
        results: list[list[str] | WakeError] = [["nat"], failure, failure, [], failure]

        def wake(_family: Family, tables: set[str]) -> list[str]:
            done.append(tables)
            result = results.pop(0)
            if isinstance(result, WakeError):
                raise result
            return result

        monkeypatch.setattr(nft_tables, "wake", wake)
        layout: Any = SimpleNamespace(
            family=V4, jumps=[SimpleNamespace(table="nat"), SimpleNamespace(table="filter")]
        )
        return preparation(layout, tables_of(V4, variant), done.append), done

    return make


def test_dormant_tables_of_nft_are_switched_on_and_a_failure_is_logged_once(
    prepared: Callable[[Variant], tuple[Callable[[bool], None], list[Any]]],
) -> None:
    prepare, done = prepared(Variant.NFT)
    with capture_logs() as logs:
        for _ in range(5):
            prepare(True)  # noqa: FBT003 - the interface of a backend
    assert done == [True, {"nat", "filter"}] * 5
    assert [(each["event"], each.get("table")) for each in logs] == [
        ("table_switched_on", "nat"),
        ("table_check_failed", None),
        ("table_check_failed", None),
    ]


def test_legacy_tables_are_never_dormant(
    prepared: Callable[[Variant], tuple[Callable[[bool], None], list[Any]]],
) -> None:
    prepare, done = prepared(Variant.LEGACY)
    prepare(False)  # noqa: FBT003 - the interface of a backend
    assert done == [False]


def synced(reports: dict[Family, SyncReport]) -> tuple[dict[str, str], tuple[str, ...]]:
    """One sync of a service with a defect, whose families end so."""
    backends: Any = {
        family: SimpleNamespace(update=lambda _: None, sync=lambda report=report: report)
        for family, report in reports.items()
    }
    inputs = [given(service("web", externalIPs=["x"]), endpoint_slice("10.1.0.1", service="web"))]
    return sync_once(backends, inputs, SimpleNamespace(view=NODE))  # type: ignore[arg-type]


def test_one_sync_of_both_families_names_refusals_and_each_defect_once() -> None:
    failed, problems = synced({V4: SyncReport(quarantined({"ns1/web": "no match"})), V6: SyncReport()})
    assert failed == {"ns1/web": "no match"}
    assert len(problems) == 1
    assert problems[0].startswith("Service ns1/web: spec.externalIPs[0]")


def test_a_sync_that_fails_as_a_whole_names_its_family() -> None:
    with pytest.raises(PreviewError, match="IPv6: line 3 failed"):
        synced({V4: SyncReport(), V6: SyncReport(error="line 3 failed")})


@pytest.mark.parametrize(
    ("flags", "timeout", "line"),
    [
        (0, 0, "-A -t 10.96.0.1:80 -s mh"),
        (PERSISTENT, 600, "-A -t 10.96.0.1:80 -s mh -p 600"),
        (SCHED1, 0, "-A -t 10.96.0.1:80 -s mh -b mh-fallback"),
        (PERSISTENT | SCHED1 | SCHED2, 5, "-A -t 10.96.0.1:80 -s mh -p 5 -b mh-fallback,mh-port"),
    ],
)
def test_a_virtual_server_is_a_line_of_ipvsadm(flags: int, timeout: int, line: str) -> None:
    settings = VirtualServer("mh", flags, timeout)
    assert server_line(ServerId("TCP", "10.96.0.1", 80), settings) == line
