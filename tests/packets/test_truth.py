"""The real program with failures: `kproxy status` reports them at once, with an exit code for scripts."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from kproxy.telemetry.events import Reason
from kproxy_lab.apiserver import Fault
from tests.packets.cluster import Cluster
from tests.packets.file import File
from tests.packets.modes import Capability
from tests.packets.pages import get, scrape, status, value
from tests.packets.program import Kproxy
from tests.suite import mounts
from tests.support.faultinjection import BrokenSockets, BrokenTools, NetlinkFault, Sandbox, ToolFault
from tests.support.faultinjection.sockets import NETFILTER

pytestmark = pytest.mark.root


def ask(cluster: Cluster, *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code of `kproxy status`, and what it printed."""
    command = [sys.executable, "-m", "kproxy", "status", "-o", "json", *flags]
    done = cluster.lab.node.run(command, check=False)
    assert done.stdout, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


def reasons(cluster: Cluster) -> set[str]:
    return {each["reason"] for each in status(cluster)["conditions"]}


def livez(cluster: Cluster) -> int:
    return get(cluster, "/livez", 10256)[0]


def test_a_failing_sync_is_reported_at_once_and_bad_objects_by_another_code(
    spare: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mounts.needed()
    tools, sockets = BrokenTools(tmp_path / "tools"), BrokenSockets(tmp_path / "sockets")
    sandbox = Sandbox(tools=tools.directory, sockets=sockets.directory)
    monkeypatch.setattr(spare, "prefix", sandbox.command())
    program = spare.start("--iptables-sync-period=8s", "--ipvs-sync-period=8s")
    pod, address = spare.lab.local_pods[0], spare.external_ips()[4]
    assert ask(spare, "--wait", "--timeout", "30s")[0] == 0
    local = spare.publish([pod], type="NodePort", externalTrafficPolicy="Local", externalIPs=[address])
    spare.publish([pod], externalIPs=[address])
    program.until(lambda: len(status(spare)["problems"]), 1)
    assert status(spare)["healthy"] is True
    tools.enable(ToolFault.KILL_HALFWAY)
    sockets.enable(NetlinkFault.SEND_FAILS, protocols=[NETFILTER])
    spare.slices(local, spare.lab.local_pods[1:2])
    program.until(lambda: status(spare)["state"], "failing")
    assert (livez(spare), get(spare, "/healthz", 10256)[0]) == (200, 200)
    code, found = ask(spare)
    assert (code, found["healthy"]) == (1, False)
    assert "SyncFailing" in reasons(spare)
    assert found["pending"]["oldestSeconds"] > 0
    numbers = scrape(spare)
    assert value(numbers, "kproxy_oldest_pending_change_seconds") > 0
    assert value(numbers, "kproxy_healthy") == 0
    assert value(numbers, "kproxy_condition", reason="SyncFailing") == 1
    tools.disable()
    sockets.disable()
    assert ask(spare, "--wait", "--timeout", "1m")[0] == 3
    assert status(spare)["state"] == "healthy"


@pytest.mark.needs(Capability.NFTABLES)
def test_an_agent_that_never_synced_starts_and_is_not_live_for_long(
    spare: Cluster,
) -> None:
    """The sync period is that of the test: probes allow for twice as long."""
    with spare.api.faults.during(Fault.status(503, resource="services", times=None)):
        periods = ("--iptables-sync-period=1s", "--ipvs-sync-period=1s")
        program = spare.program = Kproxy(spare.lab.node, spare.command(*periods), spare.prefix)
        program.wait_log("health_changed", "state=starting")
        program.until(lambda: answers(spare), expected=True)
        assert ask(spare)[0] == 1
        program.until(lambda: livez(spare), 503)
        code, found = ask(spare)
        assert (code, found["state"]) == (1, "failing")
        assert {"ListsIncomplete", "NotSynced", "ChangesLate"} <= reasons(spare)
        assert value(scrape(spare), "kproxy_oldest_pending_change_seconds") > 2
    assert ask(spare, "--wait", "--timeout", "1m")[0] == 0
    assert livez(spare) == 200


def answers(cluster: Cluster) -> bool:
    try:
        return get(cluster, "/livez", 10256)[0] > 0
    except OSError:
        return False


@pytest.mark.needs(Capability.NFTABLES)
def test_a_lost_api_server_is_reported_and_is_no_reason_to_restart(spare: Cluster) -> None:
    program = spare.start()
    with spare.api.faults.during(Fault.refuse()):
        program.until(lambda: status(spare)["state"], "degraded")
        code, found = ask(spare)
        assert code == 1
        assert reasons(spare) == {"WatchDown"}
        assert all(watch["downSince"] and watch["lastError"] for watch in found["watches"])
        assert livez(spare) == get(spare, "/healthz", 10256)[0] == 200
    assert ask(spare, "--wait", "--timeout", "1m")[0] == 0


@pytest.mark.needs(Capability.NFTABLES)
def test_a_rejected_file_is_reported_until_it_is_mended(spare: Cluster, tmp_path: Path) -> None:
    file = File(tmp_path / "config.conf", spare)
    program = spare.start("--config", str(file.path))
    good = file.path.read_text()
    file.path.write_text(good + "clusterCIDRs: 7\n")
    program.until(lambda: status(spare)["healthy"], expected=False)
    found = ask(spare)[1]["rejectedConfiguration"]
    assert found["file"] == str(file.path)
    assert any("clusterCIDRs" in problem for problem in found["problems"])
    assert reasons(spare) == {"ConfigurationRejected"}
    assert value(scrape(spare), "kproxy_configuration_rejected") == 1
    assert livez(spare) == 200

    def events() -> set[str]:
        return {
            each["regarding"]["kind"]
            for each in spare.api.list("Event.events.k8s.io")
            if each["reason"] == Reason.CONFIGURATION.value
        }

    program.until(events, {"Node"})
    file.path.write_text(good)
    program.until(lambda: status(spare)["healthy"], expected=True)
    assert value(scrape(spare), "kproxy_configuration_rejected") == 0
