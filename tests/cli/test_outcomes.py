"""What a command asks for and how it ends, whatever its work finds; the work itself is replaced."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner

from kproxy.addresses import Family
from kproxy.agent import main as agent_main
from kproxy.agent.once import OnceTimeout
from kproxy.cli.main import main
from kproxy.inspect import diff as diff_module
from kproxy.inspect.diff import Difference
from kproxy.inspect.preflight import report as report_module
from kproxy.modes import leftovers
from kproxy.modes.base import ModeUnavailable, PreviewError
from kproxy.modes.findings import Finding, Level, Report
from kproxy.modes.leftovers import LeavingError
from kproxy.node.holder import Holder
from kproxy.node.instance import InstanceRunning
from kproxy.sources.base import SourceError
from kproxy.telemetry import status_client
from kproxy.telemetry.status import Condition, Pending, Status

Outcome = tuple[int, str, str]


def run(*arguments: str) -> Outcome:
    result = CliRunner().invoke(main, arguments, prog_name="kproxy")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.fixture
def cleaned(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What cleanup is asked to do, in `asked`; it succeeds if `clean`."""
    told = SimpleNamespace(asked=[], clean=True)

    def clean_up(**asked: bool) -> bool:
        told.asked.append(asked)
        return bool(told.clean)

    monkeypatch.setattr(leftovers, "clean_up", clean_up)
    monkeypatch.setattr(leftovers, "clean_up_on_exit", lambda: told.asked.append("on exit"))
    return told


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ((), {"kube_proxy": False, "stop": False}),
        (("--stop",), {"kube_proxy": False, "stop": True}),
        (("--peer", "kube-proxy"), {"kube_proxy": True, "stop": False}),
        (("--peer", "kube-proxy", "--stop"), {"kube_proxy": True, "stop": True}),
        (("--on-exit",), "on exit"),
    ],
)
def test_a_cleanup_does_what_it_is_asked_for(
    cleaned: SimpleNamespace, flags: tuple[str, ...], asked: object
) -> None:
    assert run("cleanup", *flags)[0] == 0
    assert cleaned.asked == [asked]


def test_a_cleanup_that_leaves_something_is_no_success(cleaned: SimpleNamespace) -> None:
    cleaned.clean = False
    assert run("cleanup")[0] == 1


@pytest.mark.parametrize("flags", [("--stop",), ("--peer", "kube-proxy"), ("--stop", "--peer", "kube-proxy")])
def test_a_cleanup_at_the_exit_removes_nothing_else(cleaned: SimpleNamespace, flags: tuple[str, ...]) -> None:
    status, _, errors = run("cleanup", "--on-exit", *flags)
    assert status != 0
    assert "--on-exit excludes --stop and --peer" in errors
    assert cleaned.asked == []


@pytest.mark.parametrize(("flags", "name"), [((), "clean_up"), (("--on-exit",), "clean_up_on_exit")])
def test_a_kproxy_that_stays_is_named(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], name: str
) -> None:
    monkeypatch.setattr(leftovers, name, raising(LeavingError("pid 5 runs here")))
    assert run("cleanup", *flags) == (1, "", "Error: pid 5 runs here\n")


SICK = Status(
    version="1",
    node="a",
    mode="iptables",
    since=datetime.now(UTC),
    healthy=False,
    node_eligible=True,
    pending=Pending(0, 0, None),
    families={},
    problems=[],
    rejected=[],
    conditions=[Condition("WatchDown", "the watch is down", datetime.now(UTC))],
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float | None]]:
    """The addresses that are asked for their status, and the seconds of a wait."""
    found: list[tuple[str, float | None]] = []

    def wait(address: str, seconds: float) -> Status:
        found.append((address, seconds))
        return SICK

    def fetch(address: str) -> Status:
        found.append((address, None))
        return SICK

    monkeypatch.setattr(status_client, "wait", wait)
    monkeypatch.setattr(status_client, "fetch", fetch)
    return found


@pytest.mark.parametrize(
    ("flags", "asks", "error"),
    [
        ((), ("127.0.0.1:10249", None), ""),
        (("--address", ":99"), ("127.0.0.1:99", None), ""),
        (("--wait",), ("127.0.0.1:10249", 60.0), "Error: not healthy after 1m0s: the watch is down\n"),
        (
            ("--wait", "--timeout", "1500ms"),
            ("127.0.0.1:10249", 1.5),
            "Error: not healthy after 1.5s: the watch is down\n",
        ),
        (
            ("--wait", "--timeout", "0s"),
            ("127.0.0.1:10249", 0.0),
            "Error: not healthy after 0s: the watch is down\n",
        ),
    ],
)
def test_a_status_is_asked_for_once_or_waited_for(
    asked: list[tuple[str, float | None]], flags: tuple[str, ...], asks: object, error: str
) -> None:
    status, text, errors = run("status", *flags)
    assert (status, errors) == (1, error)
    assert asked == [asks]
    assert json.loads(text)["node"] == "a"


def test_a_status_is_printed_as_it_is_asked_for(asked: list[tuple[str, float | None]]) -> None:
    assert run("status", "-o", "table")[1].startswith("kproxy 1 on a, mode iptables")
    assert json.loads(run("status", "-o", "json")[1])["mode"] == "iptables"


@pytest.mark.parametrize("level", list(Level))
def test_a_check_fails_with_an_error_only(monkeypatch: pytest.MonkeyPatch, level: Level) -> None:
    finding = Finding(level, "the kernel", "it is there", "nothing")
    monkeypatch.setattr(report_module, "check_node", lambda *_: Report((finding,)))
    passes = level is not Level.ERROR
    status, text, _ = run("check")
    assert status == (0 if passes else 1)
    assert "the kernel" in text
    status, text, _ = run("check", "-o", "json")
    assert status == (0 if passes else 1)
    found = json.loads(text)
    assert found["passed"] is passes
    assert [each["subject"] for each in found["findings"]] == ["the kernel"]


@pytest.mark.parametrize(
    ("found", "status", "errors"),
    [
        (Difference({Family.IPV4: ()}), 0, ""),
        (Difference({}, problems=("Service ns/a: x",)), 0, "warning: Service ns/a: x\n"),
        (Difference({}, failed={"ns/b": "refused"}), 0, "warning: ns/b: refused\n"),
    ],
)
def test_a_diff_without_a_change_ends_with_0(
    monkeypatch: pytest.MonkeyPatch, found: Difference, status: int, errors: str
) -> None:
    monkeypatch.setattr(diff_module, "of_this_node", lambda *_: found)
    assert run("diff") == (status, "", errors)
    changes = json.loads(run("diff", "-o", "json")[1])
    assert changes == {"changes": [], "failed": dict(found.failed), "problems": list(found.problems)}


def test_a_diff_that_cannot_be_made_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diff_module, "of_this_node", raising(PreviewError("no permission")))
    assert run("diff") == (1, "", "Error: no permission\n")


@pytest.mark.parametrize(("flags", "family"), [((), Family.IPV4), (("--ip-family", "6"), Family.IPV6)])
def test_a_dump_has_a_family(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, flags: tuple[str, ...], family: Family
) -> None:
    families = []

    def of_dump(_config: object, _file: object, of: Family, _modes: object) -> Difference:
        families.append(of)
        return Difference({})

    monkeypatch.setattr(diff_module, "of_dump", of_dump)
    (tmp_path / "dump").touch()
    assert run("diff", "--against", str(tmp_path / "dump"), *flags)[0] == 0
    assert families == [family]


@pytest.mark.parametrize(("complete", "status"), [(True, 0), (False, 1)])
def test_an_agent_ends_with_1_if_something_was_not_done(
    monkeypatch: pytest.MonkeyPatch, complete: bool, status: int
) -> None:
    monkeypatch.setattr(agent_main, "run", lambda *_: complete)
    assert run("run", "--manifests", "/")[0] == status


def test_preparing_the_node_runs_no_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared: list[str] = []
    monkeypatch.setattr(agent_main, "prepare", lambda config: prepared.append(config.proxy_mode))
    monkeypatch.setattr(agent_main, "run", raising(AssertionError("it must not run")))
    assert run("run", "--init-only", "--proxy-mode", "nftables")[0] == 0
    assert prepared == ["nftables"]


@pytest.mark.parametrize(("clean", "status"), [(True, 0), (False, 1)])
def test_kube_proxys_cleanup_flag_runs_no_agent(
    monkeypatch: pytest.MonkeyPatch, clean: bool, status: int
) -> None:
    monkeypatch.setattr(leftovers, "clean_up", lambda: clean)
    monkeypatch.setattr(agent_main, "run", raising(AssertionError("it must not run")))
    assert run("run", "--cleanup")[0] == status


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ModeUnavailable("the kernel has no IPVS"), "the kernel has no IPVS"),
        (OnceTimeout(5.0, ["a list of Service"]), "a list of Service"),
        (SourceError("no directory"), "no directory"),
        (PermissionError(13, "Permission denied"), "Permission denied"),
        (InstanceRunning(Holder(5, 0, None)), "pid 5"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_agent_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, error: Exception, message: str
) -> None:
    monkeypatch.setattr(agent_main, "run", raising(error))
    status, _, errors = run("run", "--manifests", "/")
    assert status == 1
    assert message in errors
    assert errors.rpartition("Error: ")[2].count("\n") == 1


def test_a_status_names_its_parts_as_a_script_reads_them(asked: list[tuple[str, float | None]]) -> None:
    assert msgspec.json.decode(run("status")[1].encode(), type=Status) == SICK
