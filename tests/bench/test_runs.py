"""Runs that are kept, continued and compared; no stage is measured here."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from benchmarks.bench import command, comparison, measuring
from benchmarks.bench.contenders import Contender
from benchmarks.bench.machine import differences, source
from benchmarks.bench.results import Row
from benchmarks.bench.runs import BenchError, Run, Settings, command_line, find, summary
from benchmarks.bench.scenarios import Plan
from kproxy.cli.main import main

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MACHINE = {"cpu": "x", "cores": 2, "kernel": "6.18.0", "tools": {"nft": "1.0.6"}, "load": [0.1]}
SETTINGS = Settings(
    modes=["nft", "nftables"],
    peers=[],
    sizes=[10, 100],
    endpoints=[5],
    flags=[],
    repeats=1,
    rest=0.1,
    connects=10,
    idle_seconds=1.0,
    churn_seconds=1.0,
    churn=0.5,
    limit=60.0,
    starts=1,
)


def a_row(contender: Contender, plan: Plan, **result: Any) -> Row:
    common = {"contender": contender.name, "mode": contender.mode, "plan": dataclasses.asdict(plan)}
    return {**common, "result": result, "seconds": 10.0}


def a_run(settings: Settings = SETTINGS, **result: Any) -> Run:
    """A finished run in which all rows have this result."""
    rows = [a_row(*stage, **result) for stage in settings.stages()]
    origin = {"commit": COMMIT, "changed": False, "source": "aa"}
    return Run(dataclasses.asdict(settings), origin, dict(MACHINE), [], "2026-01-02T03:04:05Z", rows)


def one_case(**result: Any) -> Run:
    return a_run(dataclasses.replace(SETTINGS, modes=["nft"], sizes=[10]), **result)


def marks(old: Run, new: Run) -> dict[str, str]:
    (only,) = comparison.compare(old, new)
    return {pair.figure.title: pair.mark for pair in only.pairs}


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([100.0], [129.0], ""),
        ([100.0], [131.0], "SLOWER"),
        ([131.0], [100.0], "better"),
        ([100.0], None, "MISSING"),
        (None, [100.0], ""),
        ([0.1], [0.9], ""),
        ([0.9], [1.4], "SLOWER"),
        ([10.0, 10.0, 500.0], [11.0, 11.0, 900.0], ""),
        ([10.0, 10.0, 10.0], [11.0, 14.0, 14.0], "SLOWER"),
    ],
)
def test_a_median_that_is_so_many_times_slower_is_marked(
    old: list[float] | None, new: list[float] | None, expected: str
) -> None:
    """Values below the floor of the figure, one millisecond, count as the floor."""
    found = marks(one_case(service_added_ms=old), one_case(service_added_ms=new))
    assert found == {"service added ms": expected}
    found = marks(
        *(
            dataclasses.replace(run, rows=[summary(row) for row in run.rows])
            for run in (one_case(service_added_ms=old), one_case(service_added_ms=new))
        )
    )
    assert found == {"service added ms": expected}


def test_a_quantile_of_few_samples_is_no_regression() -> None:
    few, many = [1.0] * 15, [1.0] * 100
    old, new = one_case(churn_ms=few), one_case(churn_ms=[*few[:-1], 90.0])
    assert marks(old, new) == {"churn ms p50": "", "churn ms p90": "", "churn ms p99": "few samples"}
    assert comparison.worse(comparison.compare(old, new)) == []
    old, new = one_case(churn_ms=many), one_case(churn_ms=[*many[:-2], 90.0, 90.0])
    assert marks(old, new) == {"churn ms p50": "", "churn ms p90": "", "churn ms p99": "SLOWER"}


def test_fewer_connections_a_second_are_worse() -> None:
    found = marks(
        one_case(connections_per_second_last=1000.0, memory_mb=100.0),
        one_case(connections_per_second_last=700.0, memory_mb=131.0),
    )
    assert found == {"memory MB": "SLOWER", "connections/s, last": "SLOWER"}


def test_only_cases_of_both_runs_are_compared() -> None:
    new = a_run(dataclasses.replace(SETTINGS, modes=["legacy", "nft"]))
    assert [each.title for each in comparison.compare(a_run(), new)] == [
        "kproxy nft 10 x 5",
        "kproxy nft 100 x 5",
    ]


def test_what_makes_runs_unlike_is_said() -> None:
    old, new = one_case(memory_mb=1.0), one_case(memory_mb=1.0)
    old.rows.append({**old.rows[0], "mode": "legacy"})
    new.machine = {**MACHINE, "cores": 4, "tools": {"nft": "1.1.0"}, "load": [9.0]}
    new.rows[0]["plan"]["repeats"] = 7
    old.rows[0]["gave_up"] = "churn: it ended\nand why"
    console = Console(width=160, record=True, file=Path(os.devnull).open("w"))  # noqa: SIM115
    assert comparison.show(old, new, console) == 0
    said = console.export_text()
    assert "The machines differ" in said
    assert "cores: 2, 4" in said
    assert "tools.nft: 1.0.6, 1.1.0" in said
    assert "the runs differ in repeats: 1, 7" in said
    assert "the old run gave up: churn: it ended" in said
    assert "not in the new run: kproxy legacy 10 x 5" in said
    assert "load" not in said


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, ["bench", *map(str, arguments)])


def test_two_files_are_compared_in_one_command(tmp_path: Path) -> None:
    old, slower = tmp_path / "old.json", tmp_path / "new.json"
    one_case(endpoint_changed_ms=[2.0], restart_ms=[900.0]).save(old)
    one_case(endpoint_changed_ms=[3.0], restart_ms=[910.0]).save(slower)
    found = invoke("--results", slower, "--against", old)
    assert found.exit_code == 2, found.output
    assert "SLOWER kproxy nft 10 x 5: endpoint changed ms p50: 1.50 times worse" in found.output
    assert "1 of 3 figures in 1 cases are more than 1.3 times worse" in found.output
    assert invoke("--results", old, "--against", slower).exit_code == 0


def test_runs_without_a_common_case_cannot_be_compared(tmp_path: Path) -> None:
    one_case().save(tmp_path / "old.json")
    a_run(dataclasses.replace(SETTINGS, modes=["legacy"])).save(tmp_path / "new.json")
    found = invoke("--results", tmp_path / "new.json", "--against", tmp_path / "old.json")
    assert found.exit_code == 1
    assert "no contender was measured at the same size in both runs" in found.output


def test_a_commit_of_the_history_can_be_named(tmp_path: Path) -> None:
    for began, memory in (("2026-01-02T03:04:05Z", 1.0), ("2026-01-03T03:04:05Z", 2.0)):
        dataclasses.replace(one_case(memory_mb=memory), began=began).keep(tmp_path)
    assert Run.load(find(COMMIT[:8], tmp_path)).rows[0]["result"] == {"memory_mb": 2.0}
    for name in ("ffff", "no/such/file", "main"):
        with pytest.raises(BenchError, match="neither a file nor a commit"):
            find(name, tmp_path)


def test_the_history_has_no_samples_and_nothing_of_the_machine_but_its_properties(tmp_path: Path) -> None:
    run = a_run(
        dataclasses.replace(SETTINGS, peers=["other=/opt/secret/proxy --v=1"]), churn_ms=[3.0, 1.0, 2.0]
    )
    run.command = ["bench", "--output=/home/user/results"]
    run.rows[0]["gave_up"] = "cold start: the program ended\n  /opt/secret/proxy: not found"
    path = run.keep(tmp_path / "history")
    assert path.name == "20260102T030405Z-0123456789ab.json"
    text = path.read_text()
    assert "secret" not in text
    assert "/home" not in text
    found = json.loads(text)
    assert (found["commit"], found["machine"]["cores"]) == (COMMIT, 2)
    expected = {"samples": 3, "p50": 2.0, "p90": 3.0, "p99": 3.0, "least": 1.0, "most": 3.0}
    assert found["rows"][1]["result"]["churn_ms"] == expected
    assert found["rows"][0]["gave_up"] == "cold start: the program ended"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[]", "not a run of format 1"),
        ('{"machine": {}, "rows": []}', "not a run of format 1"),
        ('{"format": 1, "rows": []}', "'commit' is missing"),
        (None, "neither a file nor a commit"),
    ],
)
def test_a_file_that_is_no_run_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    if content is not None:
        path.write_text(content)
    found = invoke("--results", path, "--against", path)
    assert found.exit_code == 1
    assert message in found.output


def test_the_recorded_command_measures_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(SETTINGS, flags=["--v=2"], peers=["a=b c"], rest=0.25, sizes=[5, 7])
    orders: list[command.Order] = []

    def note(order: command.Order) -> int:
        orders.append(order)
        return 0

    monkeypatch.setattr(command, "run", note)
    assert CliRunner().invoke(main, command_line(settings)).exit_code == 0
    assert orders[0].settings() == settings


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The stages that `kproxy bench` measures, each in a second for a service; none really is."""
    stages: list[str] = []

    def measure(contender: Contender, plan: Plan, seconds: float, progress: Callable[[str], None]) -> Row:
        del seconds, progress
        stages.append(f"{contender.mode} {plan.services}")
        return {**a_row(contender, plan, cold_start_ms=[100.0]), "seconds": float(plan.services)}

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(measuring, "measure", measure)
    monkeypatch.setattr(command, "draw_plots", lambda rows, folder: [])
    monkeypatch.setattr(command, "machine", lambda: dict(MACHINE))
    monkeypatch.setattr(command, "source", lambda: {"commit": COMMIT, "changed": False, "source": "aa"})
    monkeypatch.setattr(
        command, "compileall", type("", (), {"compile_dir": staticmethod(lambda *_, **__: 1)})
    )
    return stages


FLAGS = ("--modes=nft,nftables", "--sizes=10,100", "--idle=1s", "--churn-time=1s")
ALL = ["nft 10", "nftables 10", "nft 100", "nftables 100"]


def test_a_run_continues_with_the_stages_that_are_left(measured: list[str], tmp_path: Path) -> None:
    flags = (*FLAGS, "--output", tmp_path, "--history", tmp_path / "history")
    for count in (1, 2, 3):
        found = invoke(*(flags if count == 1 else flags[4:]), "--resume", "--time-limit=1s")
        assert found.exit_code == 3, found.output
        assert f"{count} of 4 stages are done" in found.output
        assert measured == ALL[:count]
    assert not (tmp_path / "history").exists()
    assert invoke(*flags, "--resume", "--time-limit=1s").exit_code == 0
    assert measured == ALL
    assert len(json.loads((tmp_path / "results.json").read_text())["rows"]) == 4
    assert invoke(*flags, "--resume").exit_code == 0
    assert measured == ALL
    assert len(list((tmp_path / "history").iterdir())) == 1
    assert invoke(*flags, "--no-history").exit_code == 0
    assert measured == [*ALL, *ALL]


def test_only_stages_that_fit_the_time_are_begun(measured: list[str], tmp_path: Path) -> None:
    flags = ("--modes=nft", "--rest=0s", "--idle=1s", "--churn-time=1s", "--no-history", "--output", tmp_path)
    found = invoke(*flags, "--sizes=10,20,1000", "--time-limit=1m")
    assert found.exit_code == 3
    assert measured == ["nft 10", "nft 20"]


def test_a_stage_of_the_benchmarks_own_failure_is_measured_again(
    measured: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = measuring.measure

    def fail(contender: Contender, plan: Plan, *rest: Any) -> Row:
        failed = contender.mode == "nft" and len(measured) == 0
        found = measure(contender, plan, *rest)
        return found | {"failed": True, "gave_up": "x", "result": {}} if failed else found

    monkeypatch.setattr(measuring, "measure", fail)
    flags = ("--modes=nft,nftables", "--sizes=10", "--output", tmp_path, "--history", tmp_path / "history")
    assert invoke(*flags).exit_code == 1
    assert not (tmp_path / "history").exists()
    assert invoke(*flags, "--resume").exit_code == 0
    assert measured == ["nft 10", "nftables 10", "nft 10"]
    assert (tmp_path / "history").exists()


@pytest.mark.parametrize(
    ("flags", "changed", "message"),
    [
        (["--sizes=10"], {}, "other settings: sizes [10, 100]"),
        (["--quick", "--sizes=10,100"], {}, "other settings: repeats 15"),
        ([], {"source": {"commit": COMMIT, "changed": True, "source": "bb"}}, "it measured other sources"),
        ([], {"machine": {**MACHINE, "cores": 4}}, "it ran on another machine (cores: 2, 4)"),
    ],
)
def test_rows_of_another_program_or_machine_are_not_put_beside(
    measured: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: list[str],
    changed: dict[str, Any],
    message: str,
) -> None:
    assert invoke(*FLAGS, "--output", tmp_path, "--time-limit=1s").exit_code == 3
    for name, value in changed.items():
        monkeypatch.setattr(command, name, lambda value=value: value)
    found = invoke("--output", tmp_path, "--resume", *flags)
    assert found.exit_code == 1
    assert message in found.output
    assert measured == ["nft 10"]


def test_what_was_measured_before_is_measured_again_and_compared(measured: list[str], tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    peers = dataclasses.replace(SETTINGS, modes=["nftables"], peers=["other=sleep 9"])
    dataclasses.replace(a_run(peers, cold_start_ms=[50.0])).keep(tmp_path / "history")
    (kept,) = (tmp_path / "history").iterdir()
    kept.rename(old)
    found = invoke("--against", old, "--output", tmp_path, "--no-history")
    assert measured == ["nftables 10", "nftables 100"]
    assert found.exit_code == 2, found.output
    assert "SLOWER kproxy nftables 100 x 5: cold start ms: 2.00 times worse" in found.output
    a_run(peers, cold_start_ms=[99.0]).save(old)
    assert invoke("--against", old, "--sizes=10", "--output", tmp_path, "--no-history").exit_code == 0
    assert measured[2:] == ["nftables 10", "nftables 10"]


def test_work_grows_with_the_size_and_pauses_do_not() -> None:
    stages = dataclasses.replace(SETTINGS, sizes=[10, 20, 100]).stages()
    (own, ten), (other, _), (_, twenty), _, (_, hundred), _ = stages
    pauses = 3 * SETTINGS.rest + 2.0
    rows = [a_row(own, ten) | {"seconds": pauses + 8}]
    assert measuring.expected(own, hundred, []) == 0
    assert measuring.expected(own, ten, rows) == pytest.approx(pauses + 8)
    assert measuring.expected(own, hundred, rows) == pytest.approx(pauses + 80)
    assert measuring.expected(other, twenty, rows) == pytest.approx(pauses + 16)
    rows.append(a_row(own, twenty) | {"seconds": pauses + 9})
    assert measuring.expected(own, hundred, rows) == pytest.approx(pauses + 9 + 80 / 10)
    rows.append(a_row(other, ten) | {"seconds": pauses + 50})
    assert measuring.expected(own, twenty, rows) == pytest.approx(pauses + 9)


def test_the_load_of_a_machine_is_no_difference() -> None:
    assert differences(MACHINE, {**MACHINE, "load": [5.0]}) == []
    assert differences(MACHINE, {**MACHINE, "tools": {}}) == ["tools.nft: 1.0.6, none"]


def test_sources_are_known_by_their_content(tmp_path: Path) -> None:
    module = tmp_path / "kproxy" / "a.py"
    module.parent.mkdir()
    module.write_text("x = 1\n")
    alone = source(tmp_path)
    assert (alone["commit"], alone["changed"]) == (None, False)
    for arguments in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "x")):
        who = ("-c", "user.name=x", "-c", "user.email=x@example.com")
        subprocess.run(["git", "-C", str(tmp_path), *who, *arguments], check=True)
    committed = source(tmp_path)
    assert len(committed["commit"]) == 40
    assert (committed["source"], committed["changed"]) == (alone["source"], False)
    module.write_text("x = 2\n")
    (tmp_path / "notes").write_text("x")
    subprocess.run(["git", "-C", str(tmp_path), "add", "notes"], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *who, "commit", "-q", "-m", "notes"], check=True)
    changed = source(tmp_path)
    assert changed["commit"] == committed["commit"]
    assert changed["changed"]
    assert changed["source"] != committed["source"]
