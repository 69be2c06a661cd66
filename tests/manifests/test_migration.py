"""The migration guide's commands, run as written, against the embedded API server or on the objects."""

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from kproxy.cli.main import main
from kproxy.config.loading import read_file
from kproxy.node.instance import WAIT_STOPPING
from kproxy_lab.apiserver import ApiServer
from tests.manifests.kustomize import OVERLAYS, built, needs_kubectl, one, pod_spec
from tests.manifests.openapi import documents, load, problems
from tests.manifests.queries import ROOT

GUIDE = (ROOT / "MIGRATION.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
KUBEADM_FILE = Path(__file__).parents[1] / "config" / "data" / "kubeadm-1.36.yaml"
KUBEADM = {
    "config.conf": KUBEADM_FILE.read_text(),
    "kubeconfig.conf": "apiVersion: v1\nkind: Config\nclusters:\n- cluster: {server: https://10.9.8.7:6443}\n",
}


def patches(name: str) -> list[list[str]]:
    """The arguments of every `kubectl patch daemonset NAME` of the guide, without where to find it."""
    lines = (line for block in BLOCKS for line in block.splitlines())
    found = [shlex.split(line) for line in lines if f" patch daemonset {name} " in line]
    return [words[words.index(name) + 1 :] for words in found]


def patched(daemon_set: dict[str, Any], arguments: list[str], folder: Path) -> dict[str, Any]:
    """What a patch makes of an object, by kubectl itself."""
    path = folder / "object.json"
    path.write_text(json.dumps(daemon_set))
    command = ["kubectl", "patch", "--local", "-f", str(path), *arguments, "-o", "json"]
    result: dict[str, Any] = json.loads(printed(command))
    return result


def printed(
    command: list[str], folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> str:
    """What a command that succeeds prints, in a folder and an environment."""
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@needs_kubectl
def test_kubeadms_configuration_is_taken_over_by_the_commands_of_the_guide(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "manifests")
    environment = {**os.environ, "KUBECONFIG": str(tmp_path / "kubeconfig"), "HOME": str(tmp_path)}
    with ApiServer() as api:
        api.kubeconfig(tmp_path / "kubeconfig")
        metadata = {"name": "kube-proxy", "namespace": "kube-system"}
        api.apply({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": KUBEADM})
        command = ["bash", "-eu", "-o", "pipefail", "-c", BLOCKS[0]]
        objects = documents(printed(command, tmp_path, environment))
    assert [problem for each in objects for problem in problems(each)] == []
    assert one(objects, "ConfigMap")["data"] == KUBEADM
    (container,) = pod_spec(one(objects, "DaemonSet"))["containers"]
    assert container["image"] == "REGISTRY/kproxy:0.1.0"
    configuration = yaml.safe_load(KUBEADM["config.conf"])
    (mount,) = [each for each in container["volumeMounts"] if each["name"] == "config"]
    assert configuration["clientConnection"]["kubeconfig"].startswith(mount["mountPath"])


@needs_kubectl
@pytest.mark.parametrize("configuration", [*OVERLAYS, "kubeadm"])
def test_what_the_guide_says_of_monitoring_opens_the_port(configuration: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "manifests")
    overlay = "iptables" if configuration == "kubeadm" else configuration
    folder = tmp_path / "manifests" / "overlays" / overlay
    if configuration == "kubeadm":
        shutil.copy(KUBEADM_FILE, folder / "config.conf")
    objects = documents(printed(["bash", "-eu", "-c", f"overlay={folder}\n{BLOCKS[1]}"]))
    assert {"PodMonitor", "PrometheusRule"} <= {each["kind"] for each in objects}
    (container,) = pod_spec(one(objects, "DaemonSet"))["containers"]
    given = one([each for each in objects if "config.conf" in each.get("data", {})], "ConfigMap")
    (tmp_path / "config.conf").write_text(given["data"]["config.conf"])
    arguments = [
        argument.replace("/var/lib/kube-proxy", str(tmp_path)).replace("$(NODE_NAME)", "node-a")
        for argument in container["args"]
    ]
    out = tmp_path / "out.yaml"
    result = CliRunner().invoke(main, [*arguments, f"--write-config-to={out}"])
    assert (result.exit_code, "flags_ignored" in result.stderr) == (0, False)
    written = next(yaml.safe_load_all(out.read_text()))
    assert (written["metricsBindAddress"], written["hostnameOverride"]) == ("0.0.0.0:10249", "node-a")


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_node_ever_matches_both_proxies(overlay: str, tmp_path: Path) -> None:
    """The label goes from none to `moving` to `yes`, and back: kube-proxy's, nothing's, kproxy's."""
    divided = one(built(ROOT / "overlays" / overlay), "DaemonSet")
    assert problems(divided) == []
    assert pod_spec(divided)["nodeSelector"] == {"kubernetes.io/os": "linux", "kproxy": "yes"}
    (avoid,) = patches("kube-proxy")
    others = patched(divided, avoid, tmp_path)
    assert problems(others) == []
    required = pod_spec(others)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "kproxy", "operator": "DoesNotExist"}]}
    ]
    moves = [line for line in commands() if line.startswith("kubectl label node NODE ")]
    assert [line.split()[4] for line in moves] == ["kproxy=moving", "kproxy=yes", "kproxy=moving", "kproxy-"]


def commands() -> list[str]:
    return [line for block in BLOCKS for line in block.splitlines()]


def test_a_pod_is_gone_before_the_other_proxy_may_come() -> None:
    for before, after, label in (
        ("kproxy=moving", "kproxy=yes --overwrite", "k8s-app=kube-proxy"),
        ("kproxy=moving --overwrite", "kproxy-", "app.kubernetes.io/name=kproxy"),
    ):
        at = commands().index(f"kubectl label node NODE {before}")
        waits = commands()[at + 1]
        assert waits.startswith(f"kubectl -n kube-system wait pod --for=delete -l {label} ")
        assert commands()[at + 2] == f"kubectl label node NODE {after}"
    labels = one(load(ROOT / "base" / "daemonset.yaml"), "DaemonSet")["spec"]["template"]["metadata"][
        "labels"
    ]
    assert labels == {"app.kubernetes.io/name": "kproxy"}


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_in_the_end_the_selector_goes(overlay: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "manifests")
    folder = tmp_path / "manifests" / "overlays" / overlay
    (line,) = [line for line in commands() if "selector.yaml" in line]
    printed(["bash", "-eu", "-c", f"overlay={folder}\n{line}"])
    whole = one(built(folder), "DaemonSet")
    assert problems(whole) == []
    assert pod_spec(whole)["nodeSelector"] == {"kubernetes.io/os": "linux"}


def test_what_the_guide_appends_is_a_setting_of_kproxy(tmp_path: Path) -> None:
    (line,) = [line for line in commands() if "cleanupOnExit" in line]
    shutil.copy(ROOT / "overlays" / "nftables" / "config.conf", tmp_path)
    printed(["bash", "-eu", "-c", f"overlay={tmp_path}\n{line}"])
    assert read_file(tmp_path / "config.conf").own.cleanup_on_exit is True


def test_the_program_takes_the_guide_s_commands() -> None:
    """And the pod's time to end is longer than another kproxy waits for it."""
    spec = pod_spec(one(load(ROOT / "base" / "daemonset.yaml"), "DaemonSet"))
    assert spec["terminationGracePeriodSeconds"] >= WAIT_STOPPING
    used = {shlex.split(line.partition(" -- kproxy ")[2])[0] for line in commands() if " -- kproxy " in line}
    assert used == {"status", "cleanup"}
    assert CliRunner().invoke(main, ["cleanup", "--on-exit", "--help"]).exit_code == 0
