"""A kube-proxy beside kproxy is named by its process, or by the answer at its port."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from kproxy.node import kube_proxy_process as module
from kproxy.node.kube_proxy_process import warn_of_kube_proxy


def process(proc: Path, pid: str, name: str, namespace: Path | None) -> None:
    (proc / pid / "ns").mkdir(parents=True)
    (proc / pid / "comm").write_text(f"{name}\n")
    if namespace is not None:
        (proc / pid / "ns/net").symlink_to(namespace)


@pytest.fixture
def proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /proc of this process, whose network namespace is `ours`."""
    ours, proc = tmp_path / "ours", tmp_path / "proc"
    ours.touch()
    process(proc, "self", "kproxy", ours)
    found = module._processes
    monkeypatch.setattr(module, "_processes", lambda: found(proc))
    return proc


@contextmanager
def answering(body: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A server at kube-proxy's port; the paths that it is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        monkeypatch.setattr(module, "METRICS_PORT", server.server_address[1])
        yield asked
        server.shutdown()
        thread.join()


def warned(*, ask: bool) -> list[tuple[object, object]]:
    with capture_logs() as logs:
        warn_of_kube_proxy(ask=ask)
    assert {(each["event"], each["log_level"]) for each in logs} <= {("kube_proxy_running", "warning")}
    return [(each.get("pids"), each.get("answers")) for each in logs]


def test_processes_of_this_network_namespace_are_named(proc: Path, tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    theirs.touch()
    process(proc, "12", "nginx", ours)
    process(proc, "31", "kube-proxy", theirs)
    process(proc, "32", "kube-proxy", None)
    (proc / "33").mkdir()
    process(proc, "kube-proxy", "kube-proxy", ours)
    assert warned(ask=False) == []
    process(proc, "207", "kube-proxy", ours)
    process(proc, "41", "kube-proxy", ours)
    assert warned(ask=False) == [([41, 207], None)]


def test_a_proc_that_cannot_be_read_names_none(tmp_path: Path) -> None:
    assert module._processes(tmp_path / "absent") == []


def test_this_machine_names_no_process_of_the_tests() -> None:
    assert os.getpid() not in module._processes()


@pytest.mark.parametrize("mode", ["iptables", "ipvs", "nftables"])
def test_the_answer_at_the_port_names_its_mode(
    proc: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    with answering(mode.encode(), monkeypatch) as asked:
        answers = f"127.0.0.1:{module.METRICS_PORT}/proxyMode says {mode}"
        assert warned(ask=True) == [(None, answers)]
        assert asked == ["/proxyMode"]
        assert warned(ask=False) == []
        assert asked == ["/proxyMode"]


def test_the_answer_of_another_program_is_none(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"<html>", monkeypatch):
        assert warned(ask=True) == []


def test_a_closed_port_is_none(proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(b"ipvs", monkeypatch):
        pass
    assert warned(ask=True) == []


def test_both_are_named_in_one_line(proc: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process(proc, "5", "kube-proxy", tmp_path / "ours")
    with answering(b"ipvs", monkeypatch):
        ((pids, answers),) = warned(ask=True)
    assert pids == [5]
    assert "says ipvs" in str(answers)
