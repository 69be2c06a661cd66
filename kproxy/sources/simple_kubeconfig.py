"""Read simple configurations of a cluster (a URL, files and a token) without the `kubernetes` package.

The import of that package takes longer than everything else before kproxy's first request, and kube-proxy's
kubeconfig and a pod's service account do not need it. A configuration with any unsupported field (exec
plugins, certificates inside the file, proxies) or a defect is left to the package.
"""

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml

T = TypeVar("T")

_PROXY_VARIABLES = frozenset({"http_proxy", "https_proxy", "all_proxy"})


@dataclass(frozen=True, slots=True)
class SimpleAccess:
    """The server and the credentials for it.

    `host` is the server's URL, unchanged; `tls` holds arguments of urllib3.PoolManager. A `token_file` takes
    precedence over a `token` and must be read at each request (client-go, AuthInfo).
    """

    host: str
    tls: dict[str, Any]
    token: str | None = field(default=None, repr=False)
    token_file: Path | None = None


class _Cluster(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    server: str
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    insecure_skip_tls_verify: bool = False


class _User(msgspec.Struct, rename="kebab", forbid_unknown_fields=True):
    client_certificate: str = ""
    client_key: str = ""
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")


class _Context(msgspec.Struct):
    cluster: str
    user: str = ""


class _NamedContext(msgspec.Struct):
    name: str
    context: _Context


class _Named(msgspec.Struct):
    """A cluster or a user; only the selected one is decoded."""

    name: str
    cluster: object = None
    user: object = None


class _Kubeconfig(msgspec.Struct, rename="kebab"):
    contexts: list[_NamedContext]
    clusters: list[_Named]
    users: list[_Named] = []
    current_context: str = ""


def from_kubeconfig(path: Path, context: str | None, master: str | None) -> SimpleAccess | None:
    """The access that a kubeconfig describes; None if it has unsupported fields or a defect.

    `context` None: its current one; `master` replaces the server's address.
    """
    try:
        content = msgspec.convert(yaml.safe_load(path.read_text(encoding="utf-8")), _Kubeconfig)
        chosen = _only(
            [each.context for each in content.contexts if each.name == (context or content.current_context)]
        )
        cluster = msgspec.convert(
            _only([each.cluster for each in content.clusters if each.name == chosen.cluster]), _Cluster
        )
        users = [each.user for each in content.users if each.name == chosen.user]
        user = msgspec.convert(_only(users), _User) if chosen.user else _User()
        authority = base64.b64decode(cluster.certificate_authority_data, validate=True).decode("ascii")
        named = {
            "ca_certs": cluster.certificate_authority,
            "cert_file": user.client_certificate,
            "key_file": user.client_key,
        }
    except (OSError, ValueError, yaml.YAMLError, msgspec.ValidationError, RecursionError):
        return None
    if authority and cluster.certificate_authority:
        return None
    files = {key: path.parent / file for key, file in named.items() if file}
    token_file = path.parent / user.token_file if user.token_file else None
    if not all(file.is_file() for file in (*files.values(), token_file) if file is not None):
        return None
    tls: dict[str, Any] = {key: str(file) for key, file in files.items()}
    tls["cert_reqs"] = "CERT_NONE" if cluster.insecure_skip_tls_verify else "CERT_REQUIRED"
    if authority:
        tls["ca_cert_data"] = authority
    return _direct(SimpleAccess(master or cluster.server, tls, user.token or None, token_file))


def from_service_account(directory: Path) -> SimpleAccess | None:
    """The access of a pod from the files that kubelet mounts; None if one is missing."""
    host, port = (os.environ.get(f"KUBERNETES_SERVICE_{what}") for what in ("HOST", "PORT"))
    token, authority = directory / "token", directory / "ca.crt"
    try:
        if not (host and port and token.read_text().strip() and authority.read_text()):
            return None
    except (OSError, ValueError):
        return None
    address = f"[{host}]" if ":" in host else host
    tls = {"cert_reqs": "CERT_REQUIRED", "ca_certs": str(authority)}
    return _direct(SimpleAccess(f"https://{address}:{port}", tls, token_file=token))


def from_address(url: str) -> SimpleAccess | None:
    """The access to a server without credentials."""
    return _direct(SimpleAccess(url, {"cert_reqs": "CERT_REQUIRED"}))


def _direct(access: SimpleAccess) -> SimpleAccess | None:
    """Return `access`, or None if a proxy may be in between or the address is invalid."""
    proxied = any(name.lower() in _PROXY_VARIABLES for name in os.environ)
    plain = access.host.startswith(("http://", "https://"))
    return access if plain and not proxied else None


def _only(found: Sequence[T]) -> T:
    """Return the only element. Raises ValueError if there is none, or more than one."""
    if len(found) != 1:
        raise ValueError(f"{len(found)} of them")
    return found[0]
