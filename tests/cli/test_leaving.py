"""A running kproxy and what would undo its work, or be undone by it: cleanups, and another kproxy."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from structlog.testing import capture_logs

from kproxy.addresses import Family
from kproxy.agent import main
from kproxy.agent.once import waits_for
from kproxy.agent.signals import Leaving, Signals
from kproxy.node.holder import NAME
from tests.cli.nodes import FLAGS, do, iptables, kproxy, rules
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network

MODES = [
    ("--proxy-mode=iptables", "--iptables-variant=nft"),
    ("--proxy-mode=iptables", "--iptables-variant=legacy"),
    ("--proxy-mode=iptables", "--iptables-variant=nft", "--iptables-layout=scalable"),
    ("--proxy-mode=nftables",),
    pytest.param(("--proxy-mode=ipvs", "--iptables-variant=legacy"), marks=pytest.mark.ipvs),
]
OTHER_PIDS = ("unshare", "--pid", "--fork", "--kill-child", "--mount-proc")


def mode_of(flags: tuple[str, ...]) -> str:
    return flags[0].partition("=")[2]


def loopback() -> None:
    """IPVS takes no endpoint where the kernel has no addresses yet."""
    do("ip", "link", "set", "lo", "up")


def made() -> list[str]:
    """Everything of kproxy's in the kernel of this namespace, in any mode."""
    found = [line for line in rules().splitlines() if "KUBE-" in line or "KPROXY-" in line]
    tables = do("nft", "list", "tables").splitlines() if shutil.which("nft") else []
    found += [line for line in tables if "kproxy" in line]
    found += [line for line in do("ip", "-br", "link").splitlines() if "kube-ipvs0" in line]
    return found


@pytest.mark.parametrize("flags", MODES, ids=" ".join)
@fresh_network
def test_a_cleanup_beside_a_running_kproxy_is_refused_or_ends_it(flags: tuple[str, ...]) -> None:
    loopback()
    with Running(*flags) as running:
        running.ready()
        before = made()
        assert before
        done = kproxy("cleanup")
        assert done.returncode == 1
        for word in (f"pid {running.pid}", f"mode {mode_of(flags)}", "since 20", "kproxy cleanup --stop"):
            assert word in done.stderr
        assert (kproxy("run", "--cleanup").returncode, made()) == (1, before)
        done = kproxy("cleanup", "--stop")
        assert (done.returncode, made()) == (0, []), done.stderr
        assert running.status() == 0
        assert "rules=removed" in running.wait("stopped")
    assert kproxy("cleanup").returncode == 0


@pytest.mark.parametrize("flags", MODES, ids=" ".join)
@fresh_network
def test_it_cleans_up_on_exit_where_it_is_to(flags: tuple[str, ...]) -> None:
    loopback()
    iptables("legacy", "-t nat -A POSTROUTING -s 10.244.0.5/32 -j RETURN")
    with Running(*flags, "--cleanup-on-exit") as running:
        running.ready()
        assert made()
        assert running.end() == 0
        assert "rules=removed" in running.wait("stopped")
    assert made() == []
    assert "-A POSTROUTING -s 10.244.0.5/32 -j RETURN" in rules()


@fresh_network
def test_it_leaves_its_rules_unless_asked() -> None:
    with Running() as running:
        running.ready()
        before = made()
        assert running.end() == 0
        assert "left in place" in running.wait("stopped")
    assert made() == before


@pytest.mark.parametrize("asked", ["variable", "command", "file", "signal"])
@fresh_network
def test_each_way_to_ask_for_it(asked: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("conf") / "config.conf"
    manifests, network = FLAGS[1], FLAGS[3]
    kube = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration"}
    kube |= {"clusterCIDR": network, "mode": "nftables", "hostnameOverride": "node-a"}
    own = {"apiVersion": "kproxy.io/v1alpha1", "kind": "KproxyConfiguration", "manifests": manifests}
    file.write_text(yaml.safe_dump_all([kube | {"conntrack": {"maxPerCore": 0}}, own]))
    environment = {"KPROXY_CLEANUP_ON_EXIT": "true"} if asked == "variable" else {}
    with Running("--config", str(file), objects=(), environment=environment) as running:
        running.ready()
        if asked == "command":
            done = kproxy("cleanup", "--on-exit")
            assert done.returncode == 0, done.stderr
            assert made()
        elif asked == "file":
            documents = yaml.safe_load_all(file.read_text())
            file.write_text(yaml.safe_dump_all([next(documents), own | {"cleanupOnExit": True}]))
            running.wait("configuration_reloaded", "KproxyConfiguration cleanupOnExit")
        elif asked == "signal":
            running.send(signal.SIGUSR1)
            running.wait("cleanup_on_exit")
        assert running.end() == 0
    assert made() == []


@fresh_network
def test_a_second_signal_cuts_it_short_and_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    lock = tmp_path_factory.mktemp("lock") / "xtables.lock"
    flags = ("--iptables-variant=legacy", "--cleanup-on-exit")
    with Running(*flags, environment={"XTABLES_LOCKFILE": str(lock)}) as running, lock.open("w") as held:
        running.ready()
        fcntl.flock(held, fcntl.LOCK_EX)
        running.send(signal.SIGTERM)
        running.wait("stopping")
        assert running.end() == 1
        assert "kproxy cleanup" in running.wait("cleanup_interrupted", "SIGTERM")
    assert made()
    assert (kproxy("cleanup").returncode, made()) == (0, [])


@fresh_network
def test_programs_that_hang_do_not_hold_up_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", str(tmp_path / "xtables.lock"))
    iptables("legacy", "-t nat -N KUBE-SERVICES")
    monkeypatch.setattr(main, "CLEANUP_SECONDS", 0.2)
    signals = Signals(lambda: None, Leaving(configured=True))
    with capture_logs() as logged, (tmp_path / "xtables.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert not main._clean_up(signals)
    assert {"cleanup_failed", "stopped"} <= {each["event"] for each in logged}
    assert made()
    assert main._clean_up(signals)
    assert made() == []


@fresh_network
def test_what_cannot_be_removed_is_named() -> None:
    with Running("--iptables-variant=nft", "--cleanup-on-exit") as running:
        running.ready()
        iptables("nft", "-t nat -A PREROUTING -s 192.0.2.9/32 -j KUBE-MARK-MASQ")
        assert running.end() == 1
        assert "192.0.2.9" in running.wait("chain_delete_failed")
        assert "not all removed" in running.wait("stopped")


@fresh_network
def test_a_second_kproxy_names_the_first() -> None:
    with Running("--proxy-mode=iptables") as running:
        running.ready()
        before = made()
        with Running() as second, Running("--once") as once, Running("--proxy-mode=nftables") as other:
            assert kproxy("run", *FLAGS, "--init-only").returncode == 0
            for each in (second, once, other):
                assert each.status() == 1
                assert sum("event=waiting_for_other_kproxy" in line for line in each.lines) == 1
                for word in ("Error: another kproxy", f"pid {running.pid}", "mode iptables", "since 20"):
                    assert word in each.lines[-1]
        assert made() == before
        assert running.end() == 0


@fresh_network
def test_the_next_kproxy_waits_for_one_that_ends(tmp_path_factory: pytest.TempPathFactory) -> None:
    """As in a rolling update: the old one has much to remove, and the new one starts meanwhile."""
    lock = tmp_path_factory.mktemp("lock") / "xtables.lock"
    flags = ("--iptables-variant=legacy", "--cleanup-on-exit")
    with Running(*flags, environment={"XTABLES_LOCKFILE": str(lock)}) as old, lock.open("w") as held:
        old.ready()
        fcntl.flock(held, fcntl.LOCK_EX)
        with Running("--iptables-variant=legacy") as new:
            new.wait("waiting_for_other_kproxy", f"pid {old.pid}")
            old.send(signal.SIGTERM)
            old.wait("stopping")
            fcntl.flock(held, fcntl.LOCK_UN)
            assert old.status() == 0
            new.ready()
            assert sum("waiting_for_other_kproxy" in line for line in new.lines) == 1
            assert new.end() == 0
    assert made()


@fresh_network
def test_a_kproxy_that_was_killed_is_not_waited_for() -> None:
    with Running() as first:
        first.ready()
        assert first.end(signal.SIGKILL) == -signal.SIGKILL
    with Running() as second:
        second.wait("starting")
        assert not [line for line in second.lines if "waiting_for_other_kproxy" in line]
        assert second.end() == 0


@fresh_network
def test_one_that_waits_can_be_ended() -> None:
    with Running() as first:
        first.wait("starting")
        with Running() as second:
            second.wait("waiting_for_other_kproxy")
            assert second.end() == 0
        assert first.end() == 0


@fresh_network
def test_one_that_does_not_answer_is_named_too() -> None:
    with Running() as running:
        running.ready()
        running.send(signal.SIGSTOP)
        done = kproxy("cleanup")
        assert done.returncode == 1
        assert f"pid {running.pid}, which does not answer" in done.stderr


@fresh_network
def test_in_another_pid_namespace_it_is_known_by_what_it_says() -> None:
    """A container's kproxy from another container; from the host and within the container it has a pid."""
    with Running() as running:
        running.ready()
        done = kproxy("cleanup", through=OTHER_PIDS)
        assert done.returncode == 1
        assert f"pid {running.pid} of another PID namespace" in done.stderr
        for flag in ("--stop", "--on-exit"):
            done = kproxy("cleanup", flag, through=OTHER_PIDS)
            assert (done.returncode, "kubectl exec" in done.stderr) == (1, True)
        assert running.end() == 0
        assert "left in place" in running.wait("stopped")


@fresh_network
def test_in_a_container_the_host_can_stop_it() -> None:
    with Running(through=OTHER_PIDS) as running:
        running.ready()
        done = kproxy("cleanup", "--stop")
        assert (done.returncode, made()) == (0, []), done.stderr
        assert running.status() == 0


@fresh_network
def test_another_user_cannot_keep_a_node_without_proxy() -> None:
    squat = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX);"
        f"s.bind({NAME!r}); s.listen(0); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", squat], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as squatter:
        assert squatter.stdout is not None
        squatter.stdout.readline()
        with Running() as running:
            running.wait("instance_lock_unusable")
            running.ready()
            assert running.end() == 0
        assert kproxy("cleanup", "--stop").returncode == 0
        squatter.communicate()
    assert made() == []


@fresh_network
def test_a_name_that_leads_nowhere_keeps_no_node_without_proxy() -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(NAME)
        done = kproxy("run", *FLAGS, "--once")
        assert (done.returncode, "instance_lock_unusable" in done.stderr) == (0, True)


@fresh_network
def test_a_kube_proxy_that_runs_is_named(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By its process where that can be seen, as on the host, and by its port from within a container."""
    loopback()
    imitation = (
        "import http.server, sys\n"
        "open('/proc/self/comm', 'w').write('kube-proxy')\n"
        "class Handler(http.server.BaseHTTPRequestHandler):\n"
        "    def do_GET(self):\n"
        "        self.send_response(200); self.end_headers(); self.wfile.write(b'ipvs')\n"
        "server = http.server.HTTPServer(('127.0.0.1', 10249), Handler)\n"
        "print(flush=True); server.serve_forever()"
    )
    with (
        subprocess.Popen([sys.executable, "-c", imitation], stdout=subprocess.PIPE) as peer,
        contextlib.ExitStack() as ended,
    ):
        assert peer.stdout is not None
        peer.stdout.readline()
        ended.callback(peer.kill)
        with Running("--metrics-bind-address=127.0.0.1:19249") as running:
            assert str(peer.pid) in running.wait("kube_proxy_running", "says ipvs", "MIGRATION")
            running.ready()
            iptables("nft", "-t nat -F KUBE-SERVICES")
            assert str(peer.pid) in running.wait("kube_proxy_running", times=2)
            assert running.end() == 0
        done = kproxy("run", *FLAGS, "--once", through=OTHER_PIDS)
        assert (done.returncode, "says ipvs" in done.stderr) == (0, True)


@fresh_network
def test_on_exit_needs_a_kproxy_that_runs() -> None:
    done = kproxy("cleanup", "--on-exit")
    assert (done.returncode, "no kproxy runs" in done.stderr) == (1, True)
    done = kproxy("cleanup", "--on-exit", "--stop")
    assert (done.returncode, "excludes" in done.stderr) == (1, True)


@pytest.mark.parametrize("timeout", ["200ms", "1s"])
@fresh_network
def test_once_says_what_it_waited_for(timeout: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    loopback()
    flags = ("--once", "--timeout", timeout, "--conntrack-max-per-core=0", "--master", "http://127.0.0.1:9")
    done = kproxy("run", *flags)
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    for word in ("--timeout", "the list of Services", "the list of EndpointSlices", "refused"):
        assert word in error
    manifests = tmp_path_factory.mktemp("m")
    done = kproxy(
        "run",
        *("--once", "--timeout", timeout, "--conntrack-max-per-core=0", "--manifests", str(manifests)),
        *("--detect-local-mode", "NodeCIDR"),
    )
    assert (done.returncode, "pod CIDRs" in done.stderr.splitlines()[-1]) == (1, True)


def test_once_names_the_rules_that_could_not_be_written() -> None:
    errors = {Family.IPV6: "locked: another program holds the xtables lock"}
    assert waits_for((), (), errors, knows_node=True) == [f"IPv6 rules to be written ({errors[Family.IPV6]})"]
    assert waits_for((), (), {}, knows_node=True) == ["a first sync"]


def test_a_timeout_is_for_once(tmp_path: Path) -> None:
    done = kproxy("run", "--timeout=1s", "--manifests", str(tmp_path))
    assert (done.returncode, "--timeout: is for --once" in done.stderr) == (1, True)
