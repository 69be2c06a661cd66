"""Client access: TLS files and kubeconfigs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import yaml


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """PEM files. Without ``client_ca`` clients are not asked for a certificate."""

    cert: Path
    key: Path
    ca: Path | None = None
    """What clients verify the server with; goes into kubeconfigs."""
    client_ca: Path | None = None
    """What the server verifies client certificates with; a verified one needs no token."""
    client_cert: Path | None = None
    client_key: Path | None = None
    """A client's certificate and key, for kubeconfigs."""

    def context(self) -> ssl.SSLContext:
        """Return the server's TLS context, read anew from the files.

        Raises:
            OSError: a file cannot be read or does not fit the others.
        """
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.cert, self.key)
        if self.client_ca is not None:
            context.load_verify_locations(self.client_ca)
            context.verify_mode = ssl.CERT_OPTIONAL
        return context


def write_kubeconfig(
    path: Path, server: str, *, tls: TlsFiles | None = None, token: str | None = None,
    token_file: Path | None = None, client_certificate: bool = True,
) -> Path:  # fmt: skip
    """Write a kubeconfig with one cluster, user and context, and return its path.

    ``token_file`` is referred to, not read, so that clients can follow its rotation. The file is
    readable by its owner only.
    """
    cluster: dict[str, str] = {"server": server}
    user: dict[str, str] = {}
    if tls is not None and tls.ca is not None:
        cluster["certificate-authority"] = str(tls.ca)
    if tls is not None and tls.client_cert is not None and client_certificate:
        user["client-certificate"] = str(tls.client_cert)
        user["client-key"] = str(tls.client_key)
    if token is not None:
        user["token"] = token
    if token_file is not None:
        user["tokenFile"] = str(token_file)
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "embedded", "cluster": cluster}],
        "users": [{"name": "client", "user": user}],
        "contexts": [{"name": "embedded", "context": {"cluster": "embedded", "user": "client"}}],
        "current-context": "embedded",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path
