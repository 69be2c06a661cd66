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
from kproxy.testing.apiserver import ApiServer
from tests.manifests.kustomize import OVERLAYS, built, needs_kubectl, one, pod_spec
from tests.manifests.openapi import documents, problems
from tests.manifests.queries import ROOT

GUIDE = (ROOT / "MIGRATION.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
KUBEADM_FILE = Path(__file__).parents[1] / "settings" / "data" / "kubeadm-1.36.yaml"
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
    written = yaml.safe_load(out.read_text())
    assert (written["metricsBindAddress"], written["hostnameOverride"]) == ("0.0.0.0:10249", "node-a")


@needs_kubectl
def test_the_patches_divide_the_nodes_and_undo_it(tmp_path: Path) -> None:
    whole = one(built(ROOT / "overlays" / "iptables"), "DaemonSet")
    divide, undo = patches("kproxy")
    divided = patched(whole, divide, tmp_path)
    assert problems(divided) == []
    assert pod_spec(divided)["nodeSelector"] == {"kubernetes.io/os": "linux", "kproxy": "yes"}
    assert patched(divided, undo, tmp_path) == whole
    (avoid,) = patches("kube-proxy")
    others = patched(whole, avoid, tmp_path)
    assert problems(others) == []
    required = pod_spec(others)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert required["nodeSelectorTerms"] == [
        {"matchExpressions": [{"key": "kproxy", "operator": "DoesNotExist"}]}
    ]


@pytest.mark.parametrize("label", ["kproxy=yes", "kproxy-"])
def test_the_label_that_moves_a_node_is_the_one_the_patches_look_for(label: str) -> None:
    assert f"kubectl label node NODE {label}" in GUIDE
