"""Who we are to the server: TLS, certificates, tokens and their rotation, and configurations gone wrong."""

import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import trustme
import yaml

from kproxy.sources.kubernetes import ClusterAccess, ClusterAccessError, KubernetesSource
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault, TlsFiles
from tests.sources.conftest import FAST
from tests.sources.objects import service
from tests.sources.recording import RecordingSink, Running, wait_for_status


def tls_files(directory: Path) -> TlsFiles:
    authority = trustme.CA()
    server = authority.issue_cert("127.0.0.1", "localhost")
    client = authority.issue_cert("kproxy@example.org")
    directory.mkdir(exist_ok=True)
    authority.cert_pem.write_to_path(directory / "ca.crt")
    server.private_key_pem.write_to_path(directory / "server.key")
    server.cert_chain_pems[0].write_to_path(directory / "server.crt")
    client.private_key_pem.write_to_path(directory / "client.key")
    client.cert_chain_pems[0].write_to_path(directory / "client.crt")
    return TlsFiles(
        cert=directory / "server.crt",
        key=directory / "server.key",
        ca=directory / "ca.crt",
        client_ca=directory / "ca.crt",
        client_cert=directory / "client.crt",
        client_key=directory / "client.key",
    )


def expect_change(api: ApiServer, sink: RecordingSink, name: str) -> None:
    api.apply(service(name), validate=False)
    sink.wait(lambda: f"default/{name}" in sink.keys(Kind.SERVICE))


def test_tls_with_a_client_certificate(tmp_path: Path) -> None:
    with ApiServer(tls=tls_files(tmp_path / "pki"), tokens={"unused"}) as api:
        api.tokens = set()
        source = KubernetesSource(ClusterAccess(api.kubeconfig(tmp_path / "kubeconfig")), "n1", FAST)
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
            assert api.wait_watchers(3)
            expect_change(api, sink, "a")


def test_a_stop_interrupts_a_tls_watch(tmp_path: Path) -> None:
    with ApiServer(tls=tls_files(tmp_path / "pki")) as api:
        source = KubernetesSource(ClusterAccess(api.kubeconfig(tmp_path / "kubeconfig")), "n1", FAST)
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
            assert api.wait_watchers(3)


def test_a_server_with_a_foreign_certificate_is_not_believed_until_the_ca_is_right(tmp_path: Path) -> None:
    files = tls_files(tmp_path / "pki")
    trusted = tmp_path / "pki" / "ca.crt"
    right = trusted.read_bytes()
    with ApiServer(tls=files) as api:
        trustme.CA().cert_pem.write_to_path(trusted)
        source = KubernetesSource(ClusterAccess(api.kubeconfig(tmp_path / "kubeconfig")), None, FAST)
        with Running(source) as sink:
            wait_for_status(source, lambda each: "CERTIFICATE_VERIFY_FAILED" in (each.last_error or ""))
            assert not sink.history
            trusted.write_bytes(right)
            sink.wait_listed(Kind.SERVICE)


def test_a_rotated_token_file_is_read_at_the_next_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    with ApiServer(tokens={"first"}) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", token_file=Path("token"))
        with Running(KubernetesSource(ClusterAccess(kubeconfig), None, FAST)) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
            assert api.wait_watchers(2)
            token.write_text("second\n")
            api.tokens = {"second"}
            api.requests.clear()
            api.drop_watches()
            expect_change(api, sink, "a")
            assert not api.requests.matching(status=401)


def test_a_refused_token_leads_to_a_fresh_kubeconfig(tmp_path: Path) -> None:
    with ApiServer(tokens={"first"}) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        with Running(KubernetesSource(ClusterAccess(kubeconfig), None, FAST)) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
            assert api.wait_watchers(2)
            api.tokens = {"second"}
            kubeconfig.write_text("half a file: [")
            api.drop_watches()
            assert api.requests.wait(status=401, count=2)
            api.kubeconfig(kubeconfig)
            expect_change(api, sink, "a")
            assert sink.deletes() == []


def test_a_refused_token_costs_no_backoff_if_a_new_one_is_there(tmp_path: Path) -> None:
    """The waits are such that one retry would fail the test."""
    days = replace(FAST, backoff_seconds=1e6, backoff_max_seconds=1e6, steady_seconds=0.0)
    with ApiServer(tokens={"first"}, watch_list=False) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        with Running(KubernetesSource(ClusterAccess(kubeconfig), None, days)) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
            assert api.wait_watchers(2)
            api.tokens = {"second"}
            api.kubeconfig(kubeconfig)
            api.faults.add(Fault.watch_error(410, resource="services"))
            sink.wait_listed(Kind.SERVICE, times=2)
            assert api.requests.matching(resource="services", status=401)


def test_in_cluster_configuration_and_its_rotating_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tls_files(tmp_path / "pki")
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "ca.crt").write_bytes((tmp_path / "pki" / "ca.crt").read_bytes())
    (account / "token").write_text("first")
    with ApiServer(tls=files, tokens={"first"}) as api:
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(api.port))
        with Running(KubernetesSource(ClusterAccess(service_account=account), None, FAST)) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
            assert api.wait_watchers(2)
            (account / "token").write_text("second")
            api.tokens = {"second"}
            api.drop_watches()
            expect_change(api, sink, "a")


def test_an_exec_plugin_is_run_again_when_its_token_is_refused(tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    token = tmp_path / "plugin-token"
    token.write_text("first")
    plugin.write_text(
        "import json, pathlib\n"
        f"token = pathlib.Path({str(token)!r}).read_text()\n"
        'version = "client.authentication.k8s.io/v1"\n'
        'print(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": {"token": token}}))\n'
    )
    with ApiServer(tokens={"first"}) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        content = yaml.safe_load(kubeconfig.read_text())
        command = {"command": sys.executable, "args": [str(plugin)]}
        content["users"][0]["user"] = {"exec": {"apiVersion": "client.authentication.k8s.io/v1", **command}}
        kubeconfig.write_text(yaml.safe_dump(content))
        with Running(KubernetesSource(ClusterAccess(kubeconfig), None, FAST)) as sink:
            sink.wait_listed(Kind.SERVICE, Kind.ENDPOINT_SLICE)
            assert api.wait_watchers(2)
            token.write_text("second")
            api.tokens = {"second"}
            api.drop_watches()
            expect_change(api, sink, "a")


def test_a_master_replaces_the_kubeconfigs_address_and_can_stand_alone(tmp_path: Path) -> None:
    with ApiServer(tokens={"t"}) as api:
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig", server="http://192.0.2.1:1")
        source = KubernetesSource(ClusterAccess(kubeconfig, master=api.url), None, FAST)
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE)
        api.tokens = None
        with Running(KubernetesSource(ClusterAccess(master=f"{api.url}/"), None, FAST)) as sink:
            sink.wait_listed(Kind.SERVICE)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "",
        "a: [",
        "just text",
        "contexts: []\ncurrent-context: x\nclusters: []\n",
        "current-context: 5\n",
    ],
)
def test_a_configuration_that_cannot_be_used_is_refused_at_once(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    source = KubernetesSource(ClusterAccess(path), None, FAST)
    with pytest.raises(ClusterAccessError, match="kubeconfig cannot be used"):
        source.run(RecordingSink(), threading.Event())


def test_outside_a_cluster_without_a_kubeconfig_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    source = KubernetesSource(ClusterAccess(), None, FAST)
    with pytest.raises(ClusterAccessError, match="in-cluster configuration cannot be used"):
        source.run(RecordingSink(), threading.Event())
