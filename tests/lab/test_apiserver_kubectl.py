"""The clients people use: kubectl, the kubernetes package, and the server run on its own."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kproxy_lab.apiserver import ApiServer
from tests.lab.apiserver_client import endpoint_slice, issue, service

KUBECTL = shutil.which("kubectl")
MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: %d, targetPort: 8080}
  - {name: dns, port: 53, protocol: %s}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: default, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
endpoints: [{addresses: [10.244.0.5], conditions: {ready: true}}]
ports: [{name: http, port: 8080}]
"""

ZERO_TRUST = Path(__file__).parents[2] / "manifests" / "examples" / "zero-trust"

needs_kubectl = pytest.mark.skipif(KUBECTL is None, reason="kubectl is not installed")
Kubectl = Callable[..., str]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with ApiServer(tls=issue(tmp_path), tokens={"secret"}) as api:
        yield api


@pytest.fixture
def environment(api: ApiServer, tmp_path: Path) -> dict[str, str]:
    config = api.kubeconfig(tmp_path / "kubeconfig", client_certificate=False)
    return {"HOME": str(tmp_path), "KUBECONFIG": str(config), "PATH": os.environ["PATH"]}


@pytest.fixture
def kubectl(environment: dict[str, str]) -> Kubectl:
    def run(*args: str, stdin: str = "") -> str:
        done = subprocess.run(
            [str(KUBECTL), *args], env=environment, input=stdin, capture_output=True, text=True, timeout=60,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@needs_kubectl
def test_kubectl_applies_patches_and_deletes(api: ApiServer, kubectl: Kubectl) -> None:
    assert "service/web created" in kubectl(
        "apply", "--validate=false", "-f", "-", stdin=MANIFEST % (80, "UDP")
    )
    kubectl("apply", "--validate=false", "-f", "-", stdin=MANIFEST % (81, "TCP"))
    ports = kubectl(
        "get", "svc", "web", "-o", "jsonpath={range .spec.ports[*]}{.name}={.port}/{.protocol} {end}"
    )
    assert ports == "http=81/TCP dns=53/TCP "
    assert "web-1" in kubectl("get", "endpointslices", "-A", "-l", "kubernetes.io/service-name in (web)")
    kubectl("patch", "svc", "web", "-p", '{"spec":{"type":"NodePort"}}')
    kubectl("patch", "svc", "web", "--type=json", "-p", '[{"op":"remove","path":"/spec/ports/1"}]')
    kubectl("label", "svc", "web", "tier=front")
    stored = api.get("Service", "default", "web")
    assert stored is not None
    assert stored["metadata"]["labels"] == {"app": "web", "tier": "front"}
    assert [port["nodePort"] for port in stored["spec"]["ports"]]
    kubectl("delete", "svc", "web")
    kubectl("delete", "endpointslices", "--all")
    assert (api.list("Service"), api.list("EndpointSlice")) == ([], [])


@needs_kubectl
def test_kubectl_applies_pods_and_network_policies(api: ApiServer, kubectl: Kubectl) -> None:
    said = kubectl("apply", "--validate=false", "-f", str(ZERO_TRUST))
    assert "networkpolicy.networking.k8s.io/default-deny created" in said
    assert "unchanged" in kubectl("apply", "--validate=false", "-f", str(ZERO_TRUST / "30-policies.yaml"))
    assert (
        kubectl("get", "netpol", "database", "-n", "shop", "-o", "jsonpath={.spec.policyTypes}")
        == '["Ingress"]'
    )
    ready = '{"status": {"phase": "Running", "podIP": "10.244.1.15"}}'
    kubectl("patch", "pod", "database", "-n", "shop", "--subresource=status", "--type=merge", "-p", ready)
    where = ("--field-selector", "spec.hostNetwork=false,status.podIP=10.244.1.15")
    assert "database" in kubectl("get", "pods", "-A", *where, "-o", "name")
    kubectl("label", "pod", "database", "-n", "shop", "app=other", "--overwrite")
    kubectl("delete", "netpol", "--all", "-n", "shop")
    assert api.list("NetworkPolicy") == []
    assert {each["metadata"]["name"] for each in api.list("Pod")} >= {"database", "stranger"}


@needs_kubectl
def test_kubectl_follows_a_watch(api: ApiServer, environment: dict[str, str]) -> None:
    api.apply(service("first"))
    command = [str(KUBECTL), "get", "svc", "-w", "--output-watch-events"]
    command += ["-o", 'jsonpath={.type} {.object.metadata.name}{"\\n"}']
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ADDED first\n"
        assert api.wait_watchers(1, "services")
        api.apply(service("second"))
        api.delete("Service", "default", "first")
        lines = [process.stdout.readline() for _ in range(2)]
        process.terminate()
    assert lines == ["ADDED second\n", "DELETED first\n"]


def test_the_kubernetes_package_lists_and_watches(api: ApiServer, tmp_path: Path) -> None:
    from kubernetes import client, config, watch

    api.apply_many([service("a"), service("b", clusterIP="None"), endpoint_slice("a-1", "10.0.0.1")])
    api.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}})
    made = config.new_client_from_config(str(api.kubeconfig(tmp_path / "kubeconfig")))
    core, discovery = client.CoreV1Api(made), client.DiscoveryV1Api(made)
    listed = core.list_service_for_all_namespaces(field_selector="spec.clusterIP!=None", limit=1)
    assert [item.metadata.name for item in listed.items] == ["a"]
    assert core.read_node("n1").metadata.uid
    (slice_,) = discovery.list_namespaced_endpoint_slice("default").items
    assert slice_.endpoints[0].addresses == ["10.0.0.1"]
    api.apply(service("c"))
    events = watch.Watch().stream(
        core.list_service_for_all_namespaces, resource_version=listed.metadata.resource_version,
        timeout_seconds=1,
    )  # fmt: skip
    assert [(event["type"], event["object"].metadata.name) for event in events] == [("ADDED", "c")]
    patched = core.patch_namespaced_service("a", "default", {"metadata": {"labels": {"x": "y"}}})
    assert patched.metadata.labels == {"x": "y"}


def test_it_runs_on_its_own_until_interrupted(tmp_path: Path) -> None:
    from kubernetes import client, config

    (tmp_path / "web.yaml").write_text(MANIFEST % (80, "UDP"))
    command = [sys.executable, "-m", "kproxy_lab.apiserver", "--manifests", str(tmp_path / "web.yaml"),
               "--kubeconfig-out", str(tmp_path / "config"), "--token", "t"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().endswith("2 objects loaded\n")
        made = config.new_client_from_config(str(tmp_path / "config"))
        listed = client.CoreV1Api(made).list_service_for_all_namespaces()
        assert [item.spec.cluster_ip.startswith("10.96.") for item in listed.items] == [True]
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [", "broken.yaml"), ("- 1", "no object"), ("kind: Widget\napiVersion: v1", "Widget"),
     ("kind: Service\napiVersion: v1\nmetadata: {name: UPPER}", "DNS-1123")],
)  # fmt: skip
def test_manifests_that_cannot_be_loaded_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken.yaml").write_text(text)
    command = [sys.executable, "-m", "kproxy_lab.apiserver", "--manifests", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert message in done.stderr
