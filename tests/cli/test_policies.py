"""NetworkPolicies through the commands, on a real kernel: run, status, diff, render, check and cleanup."""

from __future__ import annotations

import json
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kproxy.addresses import Family
from kproxy.backends.policy.names import TABLE
from kproxy.kernel import nft_tables
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.modes.registry import MODES
from kproxy_lab.apiserver import ApiServer, Fault
from tests.cli.nodes import LIMIT_AS_IT_IS, do, kproxy
from tests.cli.running import Running
from tests.kernel.namespace import fresh_network
from tests.state.policy_objects import pod_json

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: nftables\n---\n"
OWN = "apiVersion: kproxy.io/v1alpha1\nkind: KproxyConfiguration\n"
SWITCHED_ON = OWN + "networkPolicy: {enabled: true}\n"
MODE = "--proxy-mode=nftables"
PORTABLE = ("--network-policy", "--network-policy-unknown-pods", "allow")
"""Without the queue that not every kernel has."""
BOTH = (Family.IPV4, Family.IPV6)
NODE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Node",
    "metadata": {"name": "n1"},
    "spec": {"podCIDRs": ["10.1.0.0/24"]},
}


def objects(directory: Path, **policies: object) -> tuple[str, ...]:
    """Write manifests of a node, a namespace, two pods and these policies; the flags that read them."""
    found: list[dict[str, Any]] = [
        NODE,
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
        pod_json("web", "10.1.0.1", labels={"app": "web"}),
        pod_json("db", "10.1.0.2", labels={"app": "db"}),
    ]
    found += [
        {
            "apiVersion": "networking.k8s.io/v1",
            "kind": "NetworkPolicy",
            "metadata": {"name": name, "namespace": "shop"},
            "spec": spec,
        }
        for name, spec in policies.items()
    ]
    (directory / "objects.yaml").write_text(yaml.safe_dump_all(found))
    return ("--manifests", str(directory), "--hostname-override", "n1", LIMIT_AS_IT_IS)


def only_db(**others: object) -> dict[str, object]:
    return {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [], **others}


def isolated(family: Family = Family.IPV4) -> set[str] | None:
    """The addresses that the kernel isolates at ingress; None without a table."""
    found = NetlinkNft().reading(family, TABLE)
    return None if found is None or found.elements is None else set(found.elements["ingress"])


def get(path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:10249{path}", timeout=20) as answer:
        text: str = answer.read().decode()
        return text


def status() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(get("/status"))
    return found


def in_a_network(test: Callable[[Path], None], directory: Path) -> None:
    @fresh_network
    def body() -> None:
        do("ip", "link", "set", "lo", "up")
        test(directory)

    body()


def test_each_command_knows_the_tables(tmp_path: Path) -> None:
    in_a_network(_each_command, tmp_path)


def _each_command(directory: Path) -> None:
    flags = (*objects(directory, db=only_db()), MODE)
    once = ("run", "--once", "--healthz-bind-address", "", *flags)
    done = kproxy(*once, "--network-policy")
    assert done.returncode == 0, done.stderr
    assert isolated() == {"10.1.0.2"}
    assert isolated(Family.IPV6) == set()
    diff = kproxy("diff", "--network-policy", *flags)
    assert (diff.returncode, diff.stdout) == (0, "")
    do("nft", "flush map ip kproxy-policy ingress")
    diff = kproxy("diff", "--network-policy", *flags, "-o", "json")
    (change,) = json.loads(diff.stdout)["changes"]
    assert (change["family"], change["sign"], change["object"]) == (
        "IPv4",
        "+",
        "element kproxy-policy/ingress 10.1.0.2",
    )
    diff = kproxy("diff", *flags)
    assert diff.stdout.splitlines() == ["- table ip kproxy-policy", "- table ip6 kproxy-policy"]
    assert kproxy("cleanup").returncode == 0
    assert nft_tables.standing(TABLE) == ()


def test_render_prints_what_a_sync_makes_in_each_mode(tmp_path: Path) -> None:
    flags = objects(tmp_path, db=only_db(), broken={"podSelector": {}, "unknown": 1})[:2]
    texts = {}
    for spec in MODES:
        done = kproxy("render", "--node", "n1", *PORTABLE, "--proxy-mode", spec.name, *flags)
        assert done.returncode == 0, done.stderr
        assert "NetworkPolicy shop/broken" in done.stderr
        texts[spec.name] = done.stdout.partition("# nft -f\n")[2]
        assert "kproxy-policy" not in kproxy("render", "--node", "n1", *flags).stdout
    assert len(set(texts.values())) == 1
    recording = str(tmp_path / "node.rec")
    recorded = kproxy("record", recording, *PORTABLE, *flags, "--hostname-override", "n1", "--duration", "0")
    assert recorded.returncode == 0, recorded.stderr
    replayed = kproxy("render", "--replay", recording).stdout
    assert replayed.partition("# nft -f\n")[2] in texts.values()
    in_a_network(lambda _: _loads(texts.popitem()[1]), tmp_path)


def _loads(text: str) -> None:
    do("nft", "-f", "-", stdin=text)
    assert isolated() == {"10.1.0.1", "10.1.0.2"}


def test_a_reload_turns_them_on_and_off_and_a_start_without_them_removes_what_was_left(
    tmp_path: Path,
) -> None:
    in_a_network(_on_and_off, tmp_path)


def _on_and_off(directory: Path) -> None:
    manifests = directory / "manifests"
    manifests.mkdir()
    flags = objects(manifests, db=only_db())
    file = directory / "kproxy.conf"
    file.write_text(HEAD + OWN)
    with Running("--config", str(file), objects=flags) as running:
        running.ready()
        assert status()["networkPolicy"] is None
        assert "kproxy_network_policy_" not in get("/metrics")
        file.write_text(HEAD + SWITCHED_ON)
        running.wait("policy_synced", "IPv6")
        assert 'kproxy_network_policy_isolated_pods{direction="ingress"} 1.0' in get("/metrics")
        found = status()["networkPolicy"]
        assert (found["enabled"], found["policies"], found["isolatedPods"]) == (True, 1, 1)
        assert isolated() == {"10.1.0.2"}
        file.write_text(HEAD + OWN)
        running.wait("removed", "table=kproxy-policy", times=2)
        assert nft_tables.standing(TABLE) == ()
        assert status()["networkPolicy"] is None
        file.write_text(HEAD + SWITCHED_ON)
        running.wait("policy_synced", "IPv6", times=2)
        assert running.end() == 0
    assert nft_tables.standing(TABLE) == BOTH
    file.write_text(HEAD + OWN)
    with Running("--config", str(file), objects=flags) as running:
        running.wait("removed", "table=kproxy-policy", times=2)
        assert nft_tables.standing(TABLE) == ()
        assert running.end() == 0


def test_a_mode_switch_leaves_the_tables_alone_and_a_cleanup_at_the_end_removes_them(tmp_path: Path) -> None:
    in_a_network(_switch, tmp_path)


def _switch(directory: Path) -> None:
    manifests = directory / "manifests"
    manifests.mkdir()
    flags = objects(manifests, db=only_db())
    file = directory / "kproxy.conf"
    file.write_text(HEAD + SWITCHED_ON)
    with Running("--config", str(file), "--cleanup-on-exit", objects=flags) as running:
        running.ready().wait("policy_synced", "IPv6")
        handles = do("nft", "-a", "list", "table", "ip", TABLE)
        file.write_text(HEAD.replace("mode: nftables", "mode: iptables") + SWITCHED_ON)
        running.wait("mode_switched")
        running.wait("removed", "IPv6")
        assert do("nft", "-a", "list", "table", "ip", TABLE) == handles
        assert not any("table=kproxy-policy" in line for line in running.lines)
        assert running.end(signal.SIGTERM) == 0
    assert nft_tables.standing(TABLE) == ()


def test_a_policy_that_cannot_be_obeyed_is_a_finding(tmp_path: Path) -> None:
    in_a_network(_finding, tmp_path)


def _finding(directory: Path) -> None:
    flags = objects(directory, bad={"podSelector": {}, "ingress": [{"ports": [{"port": 70000}]}]})
    with Running(MODE, "--network-policy", *flags[4:], objects=flags[:4]) as running:
        running.ready()
        line = running.wait("policy_rejected")
        assert 'object="NetworkPolicy shop/bad" field=spec.ingress[0].ports[0].port value=70000' in line
        done = kproxy("status", "--wait")
        assert done.returncode == 3, done.stdout
        assert "rejected policies, their pods are closed: 1" in kproxy("status", "-o", "table").stdout
        assert isolated() == {"10.1.0.1", "10.1.0.2"}


@pytest.mark.parametrize("family", BOTH, ids=str)
def test_a_check_tries_the_layout_and_names_others_that_enforce(tmp_path: Path, family: Family) -> None:
    in_a_network(lambda directory: _check(directory, family), tmp_path)


def _check(directory: Path, family: Family) -> None:
    do("iptables-nft", "-N", "KUBE-NWPLCY-DEFAULT")
    do("iptables-nft", "-A", "KUBE-NWPLCY-DEFAULT", "-j", "RETURN")
    flags = (*objects(directory), MODE, "--masquerade-all", "-o", "json")
    found = json.loads(kproxy("check", *flags, "--network-policy").stdout)["findings"]
    levels = {each["subject"]: each["level"] for each in found}
    assert levels[f"network policy {family}"] == "ok"
    assert (levels["kube-router"], levels["--masquerade-all"]) == ("warning", "warning")
    without = json.loads(kproxy("check", *flags).stdout)["findings"]
    assert not {"kube-router", "--masquerade-all"} & {each["subject"] for each in without}
    assert nft_tables.standing(f"{TABLE}-probe") == ()


def test_a_list_that_is_refused_keeps_the_table_and_services_do_not_wait(tmp_path: Path) -> None:
    in_a_network(_without_pods, tmp_path)


def _without_pods(directory: Path) -> None:
    """A role without the right to list Pods, after a process that had it."""
    flags = (MODE, "--network-policy", "--hostname-override", "n1", LIMIT_AS_IT_IS)
    with ApiServer() as api:
        pod = pod_json("db", "10.1.0.2")
        del pod["metadata"]["resourceVersion"], pod["metadata"]["uid"]
        api.apply_many(
            [
                NODE,
                {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}},
                pod,
                {
                    "apiVersion": "networking.k8s.io/v1",
                    "kind": "NetworkPolicy",
                    "metadata": {"name": "all", "namespace": "shop"},
                    "spec": {"podSelector": {}},
                },
            ]
        )
        source = ("--kubeconfig", str(api.kubeconfig(directory / "kubeconfig")))
        once = ("run", "--once", "--healthz-bind-address", "", *source, *flags)
        assert kproxy(*once).returncode == 0
        assert isolated() == {"10.1.0.2"}
        with api.faults.during(Fault.status(403, resource="pods", times=None)):
            done = kproxy(*once, "--timeout", "1s")
            assert done.returncode == 1
            assert "Pod (for NetworkPolicies)" in done.stderr
            healthz = ("--healthz-bind-address", "127.0.0.1:10256")
            with Running(*flags, *healthz, objects=source) as running:
                running.ready()
                found = kproxy("status")
                assert found.returncode == 1
                conditions = json.loads(found.stdout)["conditions"]
                told = [each["message"] for each in conditions if each["reason"] == "NotSynced"]
                assert told[0].startswith("NetworkPolicy IPv4: no sync has succeeded yet, it waits for")
                assert json.loads(found.stdout)["networkPolicy"]["waitsFor"].endswith(": Pod")
                with urllib.request.urlopen("http://127.0.0.1:10256/livez", timeout=20) as answer:
                    assert answer.status == 200
                assert isolated() == {"10.1.0.2"}
                assert running.end() == 0
