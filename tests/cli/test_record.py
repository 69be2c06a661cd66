"""`kproxy record`, and what --replay makes of its file, as an operator calls them."""

from __future__ import annotations

import functools
import json
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from kproxy.config.documents import Settings
from kproxy.config.model import ProxyConfig
from kproxy.inspect import record as module
from kproxy.inspect.record import LISTS_SECONDS
from kproxy.inspect.record import record as record_objects
from kproxy.sources.recording import Recorder
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault
from kproxy_lab.apiserver.manifests import load_manifests
from tests.cli.nodes import CLUSTER, EXAMPLES, FLAGS, LIMIT_AS_IT_IS, PATIENCE, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

SOURCE = ("--manifests", str(EXAMPLES), "--hostname-override", "node-a", "--cluster-cidr", CLUSTER)
LIVE: dict[str, Any] = {"seconds": 600.0, "address": "127.0.0.1:1", "anonymous": False}
WORDS = ("cart", "reports", "demo", "node-a", "node-b", "10.244.", "10.96.", "192.168.100.10", "fd00:10:")


def record(file: Path, *flags: str) -> str:
    """Write a recording; what the command printed on stderr."""
    done = kproxy("record", str(file), *flags)
    assert done.returncode == 0, done.stderr
    return done.stderr


def blocks(ruleset: str) -> list[str]:
    """The sets and chains; nft lists them in the order in which they were made."""
    body = ruleset.replace("}\ntable", "}\n\ntable").replace("{\n\tchain", "{\n\n\tchain")
    return sorted(each.strip(" \n}") for each in body.split("\n\n"))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of the examples, made without an agent."""
    path = tmp_path_factory.mktemp("record") / "a.rec"
    warning = record(path, "--duration", "0", "--address", "127.0.0.1:1", *SOURCE)
    assert "without the reports of an agent" in warning
    return path


def test_a_recording_renders_as_the_objects_that_were_recorded(file: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden.rec.gz"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    record(hidden, "--replay", str(file), "--anonymize")
    flags = ("--proxy-mode=ipvs", "--ip-family=4")
    original = kproxy("render", *SOURCE[:2], "--node=node-a", *SOURCE[4:], *flags).stdout
    assert original
    assert kproxy("render", "--replay", str(file), *flags).stdout == original
    replaced = kproxy("render", "--replay", str(hidden), *flags).stdout
    assert len(replaced.splitlines()) == len(original.splitlines())
    assert [word for word in WORDS if word in replaced] == []


def test_explain_answers_from_a_recording(file: Path) -> None:
    asked = ("explain", "-o", "json", "--desired-only", "10.244.1.99", "tcp", "demo/web")
    done = kproxy(*asked, "--replay", str(file))
    assert (done.returncode, done.stdout) == (0, kproxy(*asked, *SOURCE).stdout)
    services = next(
        each["event"]
        for each in map(json.loads, file.read_text().splitlines())
        if each["entry"] == "list_complete" and each["kind"] == "Service"
    )
    done = kproxy(*asked, "--replay", str(file), "--at", str(services))
    assert done.returncode == 3
    assert json.loads(done.stdout)["desired"]["outcomes"][0]["verdict"] == "reject"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_wait_for_lists(tmp_path: Path, number: signal.Signals) -> None:
    with ApiServer() as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        stalled = api.faults.add(Fault.stall(resource="services", times=None))
        command = ("record", str(tmp_path / "a.rec"), "--duration=0", f"--kubeconfig={kubeconfig}")
        with subprocess.Popen(
            [sys.executable, "-m", "kproxy", *command, "--hostname-override=node-a"],
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert api.faults.wait(stalled)
            process.send_signal(number)
            _, errors = process.communicate(timeout=LISTS_SECONDS - 10)
    assert process.returncode == 1
    assert "no complete list of" in errors
    assert not (tmp_path / "a.rec").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--at", "2"), "--at: is for --replay"),
        (("--replay", "FILE", "--at", "99"), "--at: 99 is more than the last event, 4"),
        (("--replay", "FILE", "--manifests", str(EXAMPLES)), "--replay: excludes --manifests"),
        (("--replay", "missing.rec"), "missing.rec: No such file or directory"),
        ((), "--manifests is needed, or --replay"),
    ],
)
def test_flags_that_do_not_fit_are_refused(file: Path, flags: tuple[str, ...], message: str) -> None:
    done = kproxy("render", *(str(file) if each == "FILE" else each for each in flags))
    assert done.returncode == 1
    assert message in done.stderr


@fresh_network
def test_changes_are_recorded_live_and_diff_takes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deleted, stop = threading.Event(), threading.Event()

    class Announcing(Recorder):
        def delete(self, kind: Kind, key: str) -> None:
            super().delete(kind, key)
            deleted.set()

    monkeypatch.setattr(module, "Recorder", Announcing)
    do("ip", "link", "set", "lo", "up")
    file = tmp_path / "a.rec"
    with ApiServer() as api:
        api.apply_many(load_manifests(EXAMPLES))
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        config = ProxyConfig(
            proxy_mode="nftables",
            node_name="node-a",
            kubeconfig=kubeconfig,
            cluster_cidrs=tuple(CLUSTER.split(",")),
        )
        watch = functools.partial(record_objects, config, Settings(), file, stop=stop, **LIVE)
        recording = threading.Thread(target=watch)
        recording.start()
        assert api.wait_watchers(4)
        api.delete("Service", "demo", "web")
        assert deleted.wait(PATIENCE)
        stop.set()
        recording.join()
        flags = ("--proxy-mode=nftables", LIMIT_AS_IT_IS, "--cluster-cidr", CLUSTER)
        live = kproxy("diff", f"--kubeconfig={kubeconfig}", "--hostname-override=node-a", *flags)
    replayed = kproxy("diff", "--replay", str(file), *flags)
    assert (replayed.returncode, replayed.stdout) == (2, live.stdout)
    (event,) = (each["event"] for each in entries(file) if each["entry"] == "delete")
    before = kproxy("diff", "--replay", str(file), "--at", str(event - 1), *flags)
    assert len(before.stdout.splitlines()) > len(live.stdout.splitlines())


def entries(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@fresh_network
def test_a_node_is_programmed_from_a_recording(tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    do("ip", "link", "set", "lo", "up")
    do("ip", "address", "add", "192.168.100.10/32", "dev", "lo")
    with Running("--proxy-mode=nftables") as running:
        running.ready()
        assert record(file, "--duration", "0", *FLAGS).count("without the reports") == 0
        live = do("nft", "list", "ruleset")
    recorded = entries(file)
    assert {each["path"] for each in recorded if each["entry"] == "report"} == {
        "/status",
        "/configz",
        "/changes",
    }
    assert "192.168.100.10" in next(each["addresses"] for each in recorded if each["entry"] == "node")
    assert [each["mode"] for each in recorded[1]["documents"] if "mode" in each] == ["nftables"]
    do("nft", "flush", "ruleset")
    done = kproxy("run", "--once", "--replay", str(file), LIMIT_AS_IT_IS, "--healthz-bind-address", "")
    assert done.returncode == 0, done.stderr
    assert blocks(do("nft", "list", "ruleset")) == blocks(live)
