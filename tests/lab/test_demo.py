"""The demo as a program: what it draws, how it is interrupted, and that it leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy_lab.demo import interruption, offline
from kproxy_lab.demo.interruption import Interrupted, Interruption
from kproxy_lab.demo.program import LogLine
from kproxy_lab.demo.screen import UNICODE, bar
from kproxy_lab.lab.namespaces import RUN_DIR


@pytest.mark.parametrize(
    ("share", "drawn"), [(0.0, ""), (0.001, "▏"), (0.25, "█"), (0.5, "██"), (0.54, "██▏"), (1.0, "████")]
)
def test_bars_have_eighths(share: float, drawn: str) -> None:
    assert bar(share, UNICODE.eighths) == drawn


def test_log_lines_are_read() -> None:
    line = LogLine.parse('timestamp=2026-01-02T03:04:05.5Z level=info event=synced reason="a b" ms=1')
    assert line.at == 1767323045.5
    assert (line.fields["event"], line.fields["reason"], line.fields["ms"]) == ("synced", "a b", "1")
    assert LogLine.parse("Traceback (most recent call last):").fields == {}


@pytest.mark.parametrize("to_main", [True, False])
def test_a_signal_ends_the_work_whichever_thread_it_falls_to(to_main: bool) -> None:
    unwound = []
    main_thread = threading.main_thread().ident
    looks: list[str] = []

    def asleep() -> int:
        """How many looks at the main thread in a row found it sleeping (proc_pid_stat(5), field 3)."""
        state = Path(f"/proc/self/task/{os.getpid()}/stat").read_text().rpartition(")")[2].split()[0]
        looks[:] = [*looks, state] if state == "S" else []
        return len(looks)

    def work(stop: Interruption) -> None:
        try:
            while asleep() < 100:  # then the main thread is waiting for the work
                pass
            target = main_thread if to_main else threading.get_ident()
            assert target is not None
            signal.pthread_kill(target, signal.SIGTERM)
            stop.wait_for(lambda: False, 30.0)
        finally:
            unwound.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted) as stopped:
        interruption.run(work)
    assert stopped.value.number == signal.SIGTERM
    assert unwound == [True]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_where_the_demo_cannot_run_it_shows_rules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offline, "missing", lambda: ["not root"])
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0
    assert "must be root" in result.output
    assert "-j DNAT --to-destination 10.244.1.11:53" in result.output
    assert "kproxy render --manifests" in result.output


def test_the_other_commands_do_without_the_extra_packages() -> None:
    check = (
        "import sys; sys.modules |= {'rich': None, 'aiohttp': None}; "
        "import kproxy.cli.main, kproxy.agent.main; sys.exit('kproxy_lab' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


@pytest.fixture(scope="module")
def possible() -> None:
    if reasons := offline.missing():
        pytest.skip("; ".join(reasons))


class Run:
    """A demo in a process of its own. `trace` is a directory that its kproxy's command line names."""

    def __init__(self, trace: Path, *arguments: str) -> None:
        self._trace = trace
        self.output = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kproxy", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(trace), "COLUMNS": "112", "PYTHONIOENCODING": "utf-8"},
            encoding="utf-8",
        )

    def read_until(self, text: str) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.output += line
            if text in line:
                return
        pytest.fail(f"no {text!r} in\n{self.output}")

    def end(self) -> int:
        assert self.process.stdout is not None
        self.output += self.process.stdout.read()
        return self.process.wait()

    def kproxies(self) -> list[int]:
        """The processes of kproxy that it started, whoever is their parent now."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if any(word.startswith(os.fsencode(self._trace)) for word in words):
                found.append(int(path.parent.name))
        return found

    def namespaces(self) -> list[str]:
        return [path.name for path in RUN_DIR.glob(f"kplab-{self.process.pid}-*")]


@contextmanager
def running(trace: Path, *arguments: str) -> Iterator[Run]:
    run = Run(trace, *arguments)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.terminate()
            run.end()


@pytest.mark.root
@pytest.mark.parametrize("variant", ["nft", "legacy"])
def test_everything_goes_as_promised(possible: None, tmp_path: Path, variant: str) -> None:
    with running(tmp_path, "--iptables-variant", variant) as run:
        assert run.end() == 0, run.output
    assert "✓ All 30 expectations held." in run.output
    assert f"variant {variant} (as asked)" in run.output
    assert f"# iptables-{variant}-save -t nat | grep 'kube-system/kube-dns:dns[\" ]'" in run.output
    assert "shop/database ingress[0] allows TCP 5432, but only from pods app=backend in shop" in " ".join(
        run.output.split()
    )
    assert "✗" not in run.output
    assert "\x1b" not in run.output
    assert (run.namespaces(), run.kproxies(), list(tmp_path.iterdir())) == ([], [], []), run.output


@pytest.mark.root
@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("kproxy: from", signal.SIGINT),
        ("network lab", signal.SIGINT),
        ("embedded API server", signal.SIGTERM),
        ("embedded API server", signal.SIGINT),
        ("demo/web-nodeport", signal.SIGINT),
        ("scale up", signal.SIGINT),
        ("A zero-trust walk", signal.SIGTERM),
    ],
)
def test_it_can_be_interrupted_at_any_moment(
    possible: None, tmp_path: Path, moment: str, number: signal.Signals
) -> None:
    with running(tmp_path) as run:
        run.read_until(moment)
        run.process.send_signal(number)
        assert run.end() == 128 + number, run.output
    assert "everything is cleaned up" in run.output
    assert (run.namespaces(), run.kproxies(), list(tmp_path.iterdir())) == ([], [], []), run.output


@pytest.mark.root
def test_if_kproxy_dies_its_log_is_shown(possible: None, tmp_path: Path) -> None:
    with running(tmp_path) as run:
        run.read_until("demo/web ")
        (pid,) = run.kproxies()
        os.kill(pid, signal.SIGKILL)
        assert run.end() == 1
    assert "kproxy ended by itself with status -9" in run.output
    assert "event=synced family=IPv4" in run.output
    assert (run.namespaces(), run.kproxies()) == ([], [])


@pytest.mark.root
def test_an_expectation_that_does_not_hold_is_named(possible: None, tmp_path: Path) -> None:
    """Topology hints are beyond the demo's second opinion: kproxy leaves out an endpoint it expects."""
    manifests = tmp_path / "manifests"
    manifests.mkdir()
    hinted = "hints: {forZones: [{name: zone-%d}]}"
    (manifests / "hints.yaml").write_text(
        f"""
apiVersion: v1
kind: Node
metadata: {{name: node-a, labels: {{topology.kubernetes.io/zone: zone-1}}}}
---
apiVersion: v1
kind: Service
metadata: {{name: near, namespace: demo}}
spec: {{clusterIP: 10.96.0.7, ports: [{{port: 80}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: near-1, namespace: demo, labels: {{kubernetes.io/service-name: near}}}}
addressType: IPv4
ports: [{{port: 8080}}]
endpoints:
- {{addresses: [10.244.1.10], nodeName: node-a, {hinted % 1}}}
- {{addresses: [10.244.2.10], nodeName: node-b, {hinted % 2}}}
"""
    )
    with running(tmp_path, "--manifests", str(manifests)) as run:
        assert run.end() == 1, run.output
    assert "did not hold" in run.output
    assert "demo/near, ClusterIP 10.96.0.7:80/TCP from pod local-1" in run.output
    assert (run.namespaces(), run.kproxies()) == ([], [])
