"""What is read without the `kubernetes` package, and what is left to it; both must mean the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import config as loaders
from kubernetes.client import Configuration

from kproxy.sources.simple_kubeconfig import SimpleAccess, from_address, from_kubeconfig, from_service_account


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def kubeconfig(path: Path, cluster: dict[str, Any] | None = None, user: dict[str, Any] | None = None) -> Path:
    """A file with another cluster, user and context around the ones that count."""
    for name in ("ca.crt", "client.crt", "client.key", "token"):
        (path / name).write_text(name)
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "preferences": {},
        "current-context": "here",
        "contexts": [
            {"name": "there", "context": {"cluster": "c2", "user": "u2"}},
            {"name": "here", "context": {"cluster": "c1", "user": "u1", "namespace": "default"}},
        ],
        "clusters": [
            {"name": "c2", "cluster": {"server": "https://c2", "proxy-url": "http://192.0.2.1"}},
            {"name": "c1", "cluster": {"server": "https://c1:6443"} | (cluster or {})},
        ],
        "users": [{"name": "u2", "user": {"exec": {"command": "x"}}}, {"name": "u1", "user": user or {}}],
    }
    (path / "config").write_text(yaml.safe_dump(content))
    return path / "config"


PEM = "-----BEGIN CERTIFICATE-----\n"

UNDERSTOOD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"certificate-authority": "ca.crt"}, {"tokenFile": "token"}),
    ({"certificate-authority": "ca.crt"}, {"client-certificate": "client.crt", "client-key": "client.key"}),
    ({"insecure-skip-tls-verify": True}, {"token": "secret"}),
    ({"server": "http://192.0.2.1:8080/path"}, {"token": "secret"}),
]


@pytest.mark.parametrize(("cluster", "user"), UNDERSTOOD)
def test_it_means_what_the_package_takes_it_for(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]
) -> None:
    path = kubeconfig(tmp_path, cluster, user)
    plain = from_kubeconfig(path, None, None)
    theirs = Configuration()
    loaders.load_kube_config(config_file=str(path), client_configuration=theirs, persist_config=False)
    assert plain is not None
    assert plain.host == theirs.host
    assert plain.tls.get("ca_certs") == theirs.ssl_ca_cert
    assert (plain.tls.get("cert_file"), plain.tls.get("key_file")) == (theirs.cert_file, theirs.key_file)
    assert (plain.tls["cert_reqs"] == "CERT_REQUIRED") == bool(theirs.verify_ssl)
    token = plain.token_file.read_text() if plain.token_file is not None else plain.token
    assert theirs.api_key.get("BearerToken") == (f"Bearer {token}" if token else None)


def test_an_authority_inside_the_file_is_decoded(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, {"certificate-authority-data": "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURS0tLS0tCg=="})
    plain = from_kubeconfig(path, None, None)
    assert plain is not None
    assert plain.tls == {"cert_reqs": "CERT_REQUIRED", "ca_cert_data": PEM}


def test_another_address_replaces_the_one_of_the_file(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path, user={"token": "secret"})
    plain = from_kubeconfig(path, "here", "https://other")
    assert plain == SimpleAccess("https://other", {"cert_reqs": "CERT_REQUIRED"}, "secret")


@pytest.mark.parametrize(
    ("cluster", "user"),
    [
        ({}, {"exec": {"command": "plugin"}}),
        ({}, {"auth-provider": {"name": "oidc"}}),
        ({}, {"client-certificate-data": "eA==", "client-key-data": "eA=="}),
        ({}, {"username": "a", "password": "b"}),
        ({}, {"token": 5}),
        ({}, {"client-certificate": "missing.crt"}),
        ({}, {"tokenFile": "missing"}),
        ({"tls-server-name": "name"}, {}),
        ({"proxy-url": "http://192.0.2.1"}, {}),
        ({"certificate-authority-data": "not Base64"}, {}),
        ({"certificate-authority-data": "eA==", "certificate-authority": "ca.crt"}, {}),
        ({"server": "c1:6443"}, {}),
        ({"server": None}, {}),
    ],
)
def test_what_takes_more_is_left_to_the_package(
    tmp_path: Path, cluster: dict[str, Any], user: dict[str, Any]
) -> None:
    assert from_kubeconfig(kubeconfig(tmp_path, cluster, user), None, None) is None


def test_so_is_a_context_that_is_missing_and_one_that_is_there_twice(tmp_path: Path) -> None:
    path = kubeconfig(tmp_path)
    assert from_kubeconfig(path, "nowhere", None) is None
    path.write_text(path.read_text().replace("name: there", "name: here"))
    assert from_kubeconfig(path, None, None) is None


def test_a_proxy_in_the_environment_is_left_to_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert from_address("https://192.0.2.1") is not None
    monkeypatch.setenv("HTTPS_PROXY", "http://192.0.2.2")
    assert from_address("https://192.0.2.1") is None
    assert from_kubeconfig(kubeconfig(tmp_path), None, None) is None


def test_a_service_account_is_used_once_all_of_it_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (tmp_path / "token").write_text("")
    (tmp_path / "ca.crt").write_text(PEM)
    assert from_service_account(tmp_path) is None
    (tmp_path / "token").write_text("secret")
    assert from_service_account(tmp_path) == SimpleAccess(
        "https://[fd00::1]:443",
        {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(tmp_path / "ca.crt")},
        token_file=tmp_path / "token",
    )
    monkeypatch.delenv("KUBERNETES_SERVICE_PORT")
    assert from_service_account(tmp_path) is None
