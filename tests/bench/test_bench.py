"""The benchmark itself: it runs with any proxy, tells who gave up, and computes what it shows."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from benchmarks.bench import command, prober, processes
from benchmarks.bench.plots import draw
from benchmarks.bench.report import markdown, show
from benchmarks.bench.results import FIGURES, OWN_FIGURES, Row, pairs, quantile, ratio
from benchmarks.cluster import pods
from kproxy.cli.main import main
from kproxy_lab.lab import Lab
from tests.kernel.namespace import fresh_network

SMALL = ["--sizes", "10", "--endpoints", "2", "--repeats", "1", "--connects", "20", "--starts", "1"]
SHORT = ["--rest", "200ms", "--idle", "100ms", "--churn-time", "500ms", "--churn", "2"]

WITHOUT_KPROXY = ["--flag", "--no-such-flag"]
"""It ends at once, and the peer follows."""


CANNOT = "; ".join(Lab.missing())
NEEDS_A_LAB = pytest.mark.skipif(bool(CANNOT), reason=CANNOT or "a lab can be built")


def row(contender: str, mode: str = "nft", services: int = 10, **result: Any) -> Row:
    plan = {"services": services, "endpoints": 5}
    return {"contender": contender, "mode": mode, "plan": plan, "result": result}


def bench(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "kproxy", "bench", "--modes", "nft", *SMALL, *SHORT, *flags]
    argv += ["--output", str(folder), "--history", str(folder / "history")]
    return subprocess.run(argv, capture_output=True, text=True, check=False)


@pytest.mark.root
@NEEDS_A_LAB
def test_every_figure_is_measured_for_kproxy_and_for_a_peer(tmp_path: Path) -> None:
    peer = f"{sys.executable} -m kproxy run --iptables-layout standard"
    done = bench(tmp_path, "--peer", f"other={peer}")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "results.json").read_text())
    assert [each["contender"] for each in found["rows"]] == ["kproxy", "other"]
    assert found["machine"]["cores"] == os.cpu_count()
    for each in found["rows"]:
        assert [figure.title for figure in FIGURES if figure.of(each) is None] == []
        assert each["result"]["churn_lost"] == 0
        assert each["result"]["churn_changes"] == 10
    assert "how many times better kproxy is" in done.stdout
    assert [figure.title for figure in OWN_FIGURES if figure.of(found["rows"][0]) is None] == []
    plots = {f"{name}.{suffix}" for name in ("latency", "churn", "phases") for suffix in ("png", "svg")}
    assert {file.name for file in tmp_path.iterdir()} == {"results.json", "table.md", "history", *plots}
    (kept,) = (tmp_path / "history").iterdir()
    assert [figure.of(each) for figure in FIGURES for each in json.loads(kept.read_text())["rows"]] == (
        pytest.approx([figure.of(each) for figure in FIGURES for each in found["rows"]], abs=0.001)
    )


@pytest.mark.root
@NEEDS_A_LAB
def test_a_peer_that_ends_is_named_with_what_it_said(tmp_path: Path) -> None:
    done = bench(tmp_path, "--peer", "broken=sh -c 'echo no such thing >&2; exit 3'")
    assert done.returncode == 1
    assert "broken nft 10 x 2: 10.96.1." in done.stdout.replace("\n", "")
    assert "the program ended" in done.stdout
    assert "no such thing" in done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert ["gave_up" in each for each in rows] == [False, True]


@pytest.mark.root
@NEEDS_A_LAB
def test_a_peer_that_does_not_come_up_costs_the_run_its_limit_only(tmp_path: Path) -> None:
    slow = "slow=sh -c 'exec sleep 60'"
    done = bench(tmp_path, "--limit", "2s", "--sizes", "10,11", "--peer", slow, *WITHOUT_KPROXY)
    assert done.returncode == 1
    assert "slow nft 10 x 2: did not come up in 2 s" in done.stdout
    assert "slow nft 11 x 2: did not come up in 2 s" in done.stdout
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [each["contender"] for each in rows] == ["kproxy", "slow", "kproxy", "slow"]
    assert [each["result"].keys() for each in rows[1::2]] == [{"memory_with_children_mb"}] * 2


@pytest.mark.root
@NEEDS_A_LAB
def test_a_stage_that_takes_too_long_keeps_what_it_measured(tmp_path: Path) -> None:
    done = bench(tmp_path, "--idle", "60s", "--stage-limit", "6s")
    assert done.returncode == 1
    assert "kproxy nft 10 x 2: not finished in 6 s: " in done.stdout
    (found,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert len(found["result"]["cold_start_ms"]) == 1
    assert "churn_ms" not in found["result"]


@pytest.mark.root
@NEEDS_A_LAB
def test_a_benchmark_that_is_terminated_takes_its_contender_along(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    peer = f"other=sh -c 'echo $$ >{started}.new; mv {started}.new {started}; exec sleep 600'"
    argv = [sys.executable, "-m", "kproxy", "bench", "--modes", "nft", *SMALL, *SHORT, "--peer", peer]
    argv += WITHOUT_KPROXY
    with subprocess.Popen([*argv, "--output", str(tmp_path)], stderr=subprocess.DEVNULL) as run:
        wait_for(started.exists)
        run.terminate()
        assert run.wait(60) != 0
    wait_for(lambda: not Path(f"/proc/{started.read_text().strip()}").exists())


def wait_for(condition: Callable[[], object], *, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        threading.Event().wait(0.02)


TARGET = {"address": "127.0.0.1", "port": 8080}


def drop_target() -> None:
    """Let nobody hear from TARGET in this network namespace."""
    loopback_up()
    rule = "type filter hook input priority 0; tcp dport 8080 drop"
    subprocess.run(["nft", "table ip t { chain c { " + rule + "; }; }"], check=True)


def loopback_up() -> None:
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)


@fresh_network
def test_a_try_without_an_answer_does_not_hold_up_the_next() -> None:
    drop_target()
    assert prober.until({**TARGET, "timeout": 0.2})["tries"] > 2


@fresh_network
def test_what_is_dropped_is_gone_when_it_was_sent() -> None:
    drop_target()
    began = time.monotonic()
    gone = prober.until({**TARGET, "timeout": 10, "gone": True})
    ended = time.monotonic()
    assert began <= gone["at"] <= ended - prober.TIMEOUT


@fresh_network
def test_a_service_is_there_when_it_answers_and_gone_when_it_refuses() -> None:
    loopback_up()
    command = {**TARGET, "timeout": 10}
    with socket.create_server(("127.0.0.1", 8080), backlog=1000) as server:
        answering = threading.Thread(target=answer, args=(server,), daemon=True)
        answering.start()
        assert prober.until({**command, "among": ["192.0.2.7"]})["tries"] == 1
        assert prober.until({**command, "timeout": 0.05, "gone": True})["at"] is None
        assert prober.until({**command, "timeout": 0.05, "not_among": ["192.0.2.7"]})["at"] is None
        server.shutdown(socket.SHUT_RDWR)
        answering.join()
    assert prober.until({**command, "gone": True})["tries"] == 1


def answer(server: socket.socket) -> None:
    """Say a pod's address to everybody, until the server is shut down."""
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            with client, contextlib.suppress(OSError):
                client.sendall(socket.inet_aton("192.0.2.7"))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_counts_a_child_but_not_a_copy_that_is_not_its_own_program_yet() -> None:
    held = "x = bytearray(100 << 20); "
    alone = measured(f"{held}print(flush=True); input()")
    copied = measured(f"import os; {held}os.fork() and print(flush=True); input()")
    doubled = measured(
        f"import subprocess, sys; {held}"
        f"subprocess.Popen([sys.executable, '-c', '{held}print(flush=True); input()']).wait()"
    )
    assert 100 < alone < 140
    assert copied < 1.2 * alone
    assert 200 < doubled < 280


def measured(program: str) -> float:
    """What a program holds when it has printed a line."""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = processes.resident_mb(process.pid)
        os.killpg(process.pid, signal.SIGKILL)
    return found


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--peer", "kube-proxy"], "--peer 'kube-proxy': not NAME=COMMAND"),
        (["--peer", "kproxy=x"], "--peer 'kproxy=x': the name is taken"),
        (["--modes", "xdp"], "--modes 'xdp': not one of"),
        (["--sizes", "10,0"], "--sizes: a number below 1"),
        (["--sizes", "many"], "--sizes: invalid literal for int() with base 10: 'many'"),
    ],
)
@pytest.mark.skipif(os.geteuid() != 0, reason="without root this is what is said first")
def test_what_cannot_be_run_is_named(flags: list[str], message: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", *flags, "--output", str(tmp_path)])
    assert result.exit_code != 0
    assert message in result.output


def test_ratios_compare_the_same_mode_and_size() -> None:
    ours, theirs = row("kproxy", cold_start_ms=[200.0]), row("peer", cold_start_ms=[3000.0])
    elsewhere = row("peer", services=20, cold_start_ms=[1.0])
    assert pairs([ours, theirs, elsewhere]) == [(ours, theirs)]
    cold = next(figure for figure in FIGURES if figure.key == "cold_start_ms")
    assert ratio(cold, ours, theirs) == 15.0
    assert ratio(cold, ours, row("peer")) is None
    rate = next(figure for figure in FIGURES if figure.key == "connections_per_second_last")
    fast = row("kproxy", connections_per_second_last=900.0)
    slow = row("peer", connections_per_second_last=300.0)
    assert ratio(rate, fast, slow) == 3.0


@pytest.mark.parametrize(
    ("samples", "share", "expected"),
    [([5.0], 0.99, 5.0), ([3.0, 1.0, 2.0], 0.5, 2.0), (list(map(float, range(1, 101))), 0.99, 99.0)],
)
def test_quantiles(samples: list[float], share: float, expected: float) -> None:
    assert quantile(samples, share) == expected


def test_a_contender_that_gave_up_early_is_shown_and_drawn(tmp_path: Path) -> None:
    rows = [row("kproxy", cold_start_ms=[200.0], churn_ms=[1.0, 2.0]), {**row("peer"), "gave_up": "it ended"}]
    console = Console(record=True, width=120, file=Path(os.devnull).open("w"))  # noqa: SIM115
    show(rows, console)
    table = markdown(rows).splitlines()
    assert table[0] == "| times better | nft, 10 x 5, vs peer |"
    assert table[2] == "| cold start ms | - |"
    second = table[table.index("") + 1 :]
    assert second[0] == "| | kproxy nft, 10 x 5 | peer nft, 10 x 5 |"
    assert second[2] == "| cold start ms | 200 | - |"
    assert second[-1] == "peer nft, 10 x 5: it ended"
    told = console.export_text()
    assert "peer nft 10 x 5: it ended" in told
    assert "200" in told
    files = draw(rows, tmp_path)
    assert sorted(file.name for file in files) == ["churn.png", "churn.svg", "latency.png", "latency.svg"]
    assert all(file.stat().st_size > 1000 for file in files)


def test_generations_of_pods_share_no_address() -> None:
    size, endpoints = 10_000, 50
    seen: set[str] = set()
    for generation in range(3):
        for index in (0, 1, size - 1):
            hosts = pods(index, endpoints, generation=generation)
            assert seen.isdisjoint(hosts)
            seen.update(hosts)
    assert seen.isdisjoint(pods(0, endpoints, moved=7)[-1:])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ([100, 1000], 3, 0.3, 2.0)),
        (["--sizes", "50"], ([50], 3, 0.3, 2.0)),
        (["--repeats=15", "--rest=1.2s", "--churn-time=1m"], ([100, 1000], 15, 1.2, 60.0)),
    ],
)
def test_quick_leaves_what_is_given(
    arguments: list[str], expected: tuple[object, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    orders: list[command.Order] = []

    def note(order: command.Order) -> int:
        orders.append(order)
        return 0

    monkeypatch.setattr(command, "run", note)
    for quick in (["--quick", *arguments], [*arguments, "--quick"]):
        result = CliRunner().invoke(main, ["bench", *quick])
        assert result.exit_code == 0, result.output
    by_variable = CliRunner().invoke(main, ["bench", *arguments], env={"KPROXY_QUICK": "1"})
    assert by_variable.exit_code == 0, by_variable.output
    for order in orders:
        assert (order.sizes, order.repeats, order.rest, order.churn_seconds) == expected
    assert len(orders) == 3
