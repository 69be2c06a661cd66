"""The address and the credentials of a cluster: from a kubeconfig, a service account or a bare address.

The `kubernetes` package supports every kind of kubeconfig. It is imported only for those that kproxy does not
read itself (simple_kubeconfig.py), because the import takes several tenths of a second.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
import yaml

from kproxy.sources.credentials import (
    ClusterAccessError,
    Headers,
    bearer,
    checked,
    from_file,
    tls_only,
    without_userinfo,
    yaml_fault,
)
from kproxy.sources.simple_kubeconfig import SimpleAccess, from_address, from_kubeconfig, from_service_account

__all__ = ["ClusterAccess", "ClusterAccessError", "Session", "load_session"]

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where kubelet mounts the pod's `token` and `ca.crt`."""

_IDLE_CONNECTIONS = 10
"""Connections kept for later requests; three watches and the requests for Events are open at once."""


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """The location of the API server and the source of the credentials.

    As with kube-proxy: without `kubeconfig` and without `master` the pod's service account is used; `master`
    alone is an address without credentials; `master` with a kubeconfig replaces the address in it.
    """

    kubeconfig: Path | None = None
    context: str | None = None
    """None: the kubeconfig's current-context."""
    master: str | None = None
    """URL of the API server."""
    service_account: Path = SERVICE_ACCOUNT


@dataclass(frozen=True, slots=True)
class Session:
    """One reading of the configuration: the server, the pool of connections to it, and the credentials."""

    host: str
    """URL without a slash at its end, user and password; may have a path."""
    pool: Any
    """urllib3.PoolManager or ProxyManager."""
    headers: Headers
    """Headers that authenticate the next request; not thread-safe, as the package refreshes in place.

    Raises ClusterAccessError if the credentials cannot be read, or must not be sent.
    """


def load_session(access: ClusterAccess) -> Session:
    """Read the configuration and prepare connections; raises ClusterAccessError with the reason."""
    if access.kubeconfig is not None:
        simple = from_kubeconfig(access.kubeconfig, access.context, access.master)
    elif access.master is not None:
        simple = from_address(access.master)
    else:
        simple = from_service_account(access.service_account)
    return _simple_session(simple, access) if simple is not None else _package_session(access)


def _simple_session(simple: SimpleAccess, access: ClusterAccess) -> Session:
    inline = bearer(simple.token, f"the token in {access.kubeconfig}") if simple.token else {}

    def headers() -> dict[str, str]:
        return from_file(simple.token_file) if simple.token_file is not None else dict(inline)

    pool = urllib3.PoolManager(maxsize=_IDLE_CONNECTIONS, **simple.tls)
    return _session(simple.host, pool, headers)


def _session(url: str, pool: Any, headers: Headers) -> Session:
    host = without_userinfo(url.rstrip("/"))
    return Session(host, pool, tls_only(host, headers))


def _package_session(access: ClusterAccess) -> Session:
    from kubernetes import config as loaders
    from kubernetes.client import ApiClient, Configuration
    from kubernetes.config.incluster_config import InClusterConfigLoader

    configuration = Configuration()
    token_file = None
    where = access.kubeconfig or "in-cluster configuration"
    try:
        if access.kubeconfig is not None:
            loaders.load_kube_config(
                config_file=str(access.kubeconfig),
                context=access.context,
                client_configuration=configuration,
                persist_config=False,
            )
            token_file = _token_file(access.kubeconfig, access.context)
        elif access.master is None:
            token_file = access.service_account / "token"
            InClusterConfigLoader(
                token_filename=str(token_file), cert_filename=str(access.service_account / "ca.crt")
            ).load_and_set(configuration)
    except _load_errors() as error:
        raise ClusterAccessError(f"{where} cannot be used: {_error_text(error)}") from None
    if access.master is not None:
        configuration.host = access.master

    def headers() -> dict[str, str]:
        if token_file is not None:
            return from_file(token_file)
        try:
            # Files end in a newline, which is not allowed in a header.
            found = {
                each["key"]: str(each["value"]).strip()
                for each in configuration.auth_settings().values()
                if each["in"] == "header" and each["value"]
            }
        except _load_errors() as error:
            raise ClusterAccessError(f"the credentials cannot be read: {_error_text(error)}") from None
        return checked(found, f"a credential of {where}")

    pool = ApiClient(configuration=configuration).rest_client.pool_manager
    return _session(str(configuration.host), pool, headers)


def _error_text(error: Exception) -> str:
    return yaml_fault(error) if isinstance(error, yaml.YAMLError) else str(error)


def _load_errors() -> tuple[type[Exception], ...]:
    """The exceptions of the package's loaders for a missing or malformed configuration."""
    from kubernetes.config import ConfigException

    return (ConfigException, OSError, yaml.YAMLError, KeyError, TypeError, ValueError, AttributeError)


def _token_file(kubeconfig: Path, context: str | None) -> Path | None:
    """The tokenFile of the user in use, which takes precedence over its token (client-go, AuthInfo)."""
    content = yaml.safe_load(kubeconfig.read_text())
    name = context or content["current-context"]
    user = next(each["context"].get("user") for each in content["contexts"] if each["name"] == name)
    for each in content.get("users") or ():
        if each["name"] == user and (each.get("user") or {}).get("tokenFile"):
            return kubeconfig.parent / str(each["user"]["tokenFile"])
    return None
