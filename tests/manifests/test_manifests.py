"""What clusters are given: each object strictly decoded, each part held against the program it starts."""

import json
import re
import shutil
import threading
from pathlib import Path

import click
import pytest
import yaml

from kproxy.cli.run import run
from kproxy.config.documents import Settings, read_documents
from kproxy.config.translate import proxy_config
from kproxy.modes.registry import mode_registry
from kproxy.sources.errors import ApiError
from kproxy.sources.kubernetes import ClusterAccess, KubernetesSource
from kproxy.state.kinds import KINDS as EVERY_KIND
from kproxy.telemetry import series
from kproxy.telemetry.events import UPDATE_SECONDS, EventRecorder, Notice, Reason
from kproxy.telemetry.exposition import Exposition, slis
from kproxy.telemetry.metrics import Metrics, observe_check
from kproxy_lab.apiserver import ApiServer
from tests.manifests.kustomize import OVERLAYS, built, needs_kubectl, one, pod_spec
from tests.manifests.openapi import load, problems
from tests.manifests.queries import KUBERNETES_MIXIN, MONITORING, ROOT, needs_promtool, own, promtool
from tests.sources.recording import RecordingSink
from tests.telemetry.test_metrics import filled

OBJECTS = sorted(
    path
    for folder in (ROOT / "base", MONITORING)
    for path in folder.glob("*.yaml")
    if path.name != "kustomization.yaml"
)
KINDS = tuple(kind for kind in EVERY_KIND if not kind.for_policies)
"""The kinds that the base reads; test_network_policy.py has the others."""

_METRIC = re.compile(r"\b(?:kproxy|kubeproxy|process|go|rest_client|kubernetes|up)(?:_\w+)?\b")
_SELECTOR = re.compile(r"\b(\w+)\{([^}]*)\}")


@pytest.mark.parametrize("path", OBJECTS, ids=lambda path: path.stem)
def test_every_object_decodes_strictly(path: Path) -> None:
    objects = load(path)
    assert objects
    assert [problem for each in objects for problem in problems(each)] == []


def test_the_check_itself_finds_what_is_wrong() -> None:
    daemon_set = one(load(ROOT / "base" / "daemonset.yaml"), "DaemonSet")
    container = pod_spec(daemon_set)["containers"][0]
    container["securityContext"]["runAsUsr"] = 0
    container["ports"][0]["containerPort"] = "10256"
    del daemon_set["spec"]["selector"]
    found = problems(daemon_set)
    where = "DaemonSet.spec.template.spec.containers[0]"
    assert f"{where}.ports[0].containerPort: '10256' is not int" in found
    assert f"{where}.securityContext.runAsUsr: unknown field" in found
    assert any(each.startswith("DaemonSet.spec: ") and "selector" in each for each in found)


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_an_overlay_builds_to_a_whole_that_fits_together(overlay: str) -> None:
    objects = built(ROOT / "overlays" / overlay)
    assert [problem for each in objects for problem in problems(each)] == []
    spec = pod_spec(one(objects, "DaemonSet"))
    config_map = one(objects, "ConfigMap")
    (config,) = [volume for volume in spec["volumes"] if volume["name"] == "config"]
    assert config["configMap"]["name"] == config_map["metadata"]["name"]
    account = one(objects, "ServiceAccount")["metadata"]
    assert spec["serviceAccountName"] == account["name"]
    (subject,) = one(objects, "ClusterRoleBinding")["subjects"]
    assert (subject["name"], subject["namespace"]) == (account["name"], account["namespace"])
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in (*spec["initContainers"], *spec["containers"]):
        assert ":" in container["image"]
        assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
    text = config_map["data"]["config.conf"]
    configuration = next(yaml.safe_load_all(text))
    settings, defects = read_documents(text)
    assert (configuration["kind"], settings.mode, defects) == ("KubeProxyConfiguration", overlay, [])
    folder = next(m["mountPath"] for m in spec["containers"][0]["volumeMounts"] if m["name"] == "config")
    assert configuration["clientConnection"]["kubeconfig"] == f"{folder}/kubeconfig.conf"
    assert f"--config={folder}/config.conf" in spec["containers"][0]["args"]


@needs_kubectl
def test_modules_are_loaded_before_the_sysctls_that_come_with_them() -> None:
    spec = pod_spec(one(built(ROOT / "overlays" / "ipvs"), "DaemonSet"))
    assert [container["name"] for container in spec["initContainers"]] == ["modules", "sysctls"]


@needs_kubectl
def test_the_socket_table_has_what_it_needs_of_the_node() -> None:
    spec = pod_spec(one(built(ROOT / "overlays" / "ebpf"), "DaemonSet"))
    (container,), (init,) = spec["containers"], spec["initContainers"]
    capabilities = container["securityContext"]["capabilities"]
    assert capabilities == {"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "NET_RAW"]}
    paths = {each["name"]: each["hostPath"]["path"] for each in spec["volumes"] if "hostPath" in each}
    assert {paths["bpffs"], paths["cgroup"]} == {"/sys/fs/bpf", "/sys/fs/cgroup"}
    mounts = {each["name"]: each for each in container["volumeMounts"]}
    config = proxy_config(Settings(), host="node-a")
    assert Path(config.ebpf_pin_directory).is_relative_to(mounts["bpffs"]["mountPath"])
    assert mounts["cgroup"]["readOnly"] is True
    # Only a privileged container may mount something on the node.
    assert init["securityContext"]["privileged"] is True
    assert {"Bidirectional"} == {
        each["mountPropagation"] for each in init["volumeMounts"] if each["name"] == "bpffs"
    }


def test_the_container_is_confined() -> None:
    daemon_set = one(load(ROOT / "base" / "daemonset.yaml"), "DaemonSet")
    spec = pod_spec(daemon_set)
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert spec["hostNetwork"] is True
    assert spec["priorityClassName"] == "system-node-critical"
    assert spec["tolerations"] == [{"operator": "Exists"}]
    paths = {volume["hostPath"]["path"] for volume in spec["volumes"] if "hostPath" in volume}
    assert paths == {"/run/xtables.lock", "/lib/modules"}


def test_the_flags_are_those_of_the_program() -> None:
    known = {name for option in run.params if isinstance(option, click.Option) for name in option.opts}
    spec = pod_spec(one(load(ROOT / "base" / "daemonset.yaml"), "DaemonSet"))
    (container,), (init,) = spec["containers"], spec["initContainers"]
    assert container["args"][0] == init["args"][0] == run.name
    flags = {argument.partition("=")[0] for argument in (*container["args"][1:], *init["args"][1:])}
    assert flags <= known | {"--config"}


def test_the_rights_are_what_the_program_uses_and_nothing_else(tmp_path: Path) -> None:
    now = 0.0
    with ApiServer() as api:
        api.apply(
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"ports": [{"port": 80}]},
            }
        )
        source = KubernetesSource(ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "k")), "node-a")
        source.watch(KINDS)
        stop = threading.Event()
        thread = threading.Thread(target=source.run, args=(RecordingSink(), stop), daemon=True)
        thread.start()
        for kind in KINDS:
            assert api.requests.wait(resource=kind.plural, verb="watch")
        recorder = EventRecorder(source.objects(), "node-a", Metrics(), (ApiError,), lambda: now)
        notice = Notice(Reason.CONFLICT, "default/web", "taken")
        recorder.send(notice)
        now = UPDATE_SECONDS
        recorder.send(notice)
        stop.set()
        thread.join(10)
        used = {(record.resource, record.verb) for record in api.requests.all()}
        refused = [record for record in api.requests.all() if record.status not in {0, 200, 201}]
    assert refused == []
    (role,) = [each for each in load(ROOT / "base" / "rbac.yaml") if each["kind"] == "ClusterRole"]
    granted = {
        (resource, verb) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]
    }
    # A list is streamed where the server can do so, and read in pages where not.
    lists = {(kind.plural, "list") for kind in KINDS}
    assert granted == used | lists


def test_the_rights_to_read_are_those_of_the_rows_of_kinds() -> None:
    (role,) = [each for each in load(ROOT / "base" / "rbac.yaml") if each["kind"] == "ClusterRole"]
    granted = {
        (group, resource)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        if {"list", "watch"} <= set(rule["verbs"])
    }
    assert granted == {(kind.group, kind.plural) for kind in KINDS}


def exported() -> dict[str, set[str]]:
    """Every series name on the wire with its labels."""
    text = Exposition(filled(), lambda: mode_registry().foreign_metrics("iptables"), ()).text().decode()
    found: dict[str, set[str]] = {"up": set()}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, _, rest = line.rpartition(" ")[0].partition("{")
            found.setdefault(name, set()).update(re.findall(r'(\w+)="', rest))
    return found


@pytest.mark.parametrize(
    "expression",
    [
        *own(),
        *KUBERNETES_MIXIN,
    ],
)
def test_what_is_asked_for_is_exported(expression: str) -> None:
    known = exported()
    from_scraping = {"cluster", "job", "node", "instance"}
    names = set(_METRIC.findall(re.sub(r'"[^"]*"', '""', expression)))
    assert names
    assert names <= known.keys()
    for name, selector in _SELECTOR.findall(expression):
        assert set(re.findall(r"(\w+)\s*(?:=|!)", selector)) <= known[name] | from_scraping


def test_every_alert_has_a_line_in_the_runbook() -> None:
    headings = re.findall(r"^## (\w+)$", (ROOT / "RUNBOOK.md").read_text(), re.MULTILINE)
    rule = one(load(MONITORING / "prometheusrule.yaml"), "PrometheusRule")
    alerts = [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
    assert sorted(headings) == sorted(alert["alert"] for alert in alerts)
    for alert in alerts:
        assert alert["annotations"]["runbook_url"] == f"manifests/RUNBOOK.md#{alert['alert'].lower()}"
        assert {"summary", "description"} <= alert["annotations"].keys()


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_monitoring_can_be_added_to_an_overlay(tmp_path: Path, overlay: str) -> None:
    copied = shutil.copytree(ROOT, tmp_path / "manifests")
    kustomization = copied / "overlays" / overlay / "kustomization.yaml"
    kustomization.write_text(kustomization.read_text() + "components: [../../components/monitoring]\n")
    objects = built(copied / "overlays" / overlay)
    assert [problem for each in objects for problem in problems(each)] == []
    (container,) = pod_spec(one(objects, "DaemonSet"))["containers"]
    monitor = one(objects, "PodMonitor")["spec"]
    assert monitor["podMetricsEndpoints"][0]["port"] in {port["name"] for port in container["ports"]}
    labels = one(objects, "DaemonSet")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    dashboards = [each for each in objects if each["metadata"]["name"] == "kproxy-dashboard"]
    assert [json.loads(each["data"]["dashboard.json"])["title"] for each in dashboards] == ["kproxy"]


@needs_promtool
def test_promtool_takes_the_rules(tmp_path: Path) -> None:
    rule = one(load(MONITORING / "prometheusrule.yaml"), "PrometheusRule")
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump(rule["spec"]))
    status, told = promtool("check", "rules", str(path))
    assert status == 0, told


@needs_promtool
def test_promtool_takes_the_metrics() -> None:
    """It objects to nothing but the names that are kube-proxy's own."""
    text = Exposition(filled(), lambda: mode_registry().foreign_metrics("iptables"), ()).text()
    _, complaints = promtool("check", "metrics", given=text)
    theirs = {each.name for each in (series.NO_LOCAL_ENDPOINTS, series.RULES)}
    assert {line.partition(" ")[0] for line in complaints} == theirs


@needs_promtool
def test_promtool_takes_the_outcomes_of_health_checks() -> None:
    metrics = Metrics()
    observe_check(metrics, "ping", "healthz", passed=True)
    assert promtool("check", "metrics", given=slis(metrics)) == (0, [])
