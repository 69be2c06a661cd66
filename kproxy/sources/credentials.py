"""Check credentials before a request: refuse those that cannot be sent, and show no secret in an error.

http.client quotes a header that it refuses, including the token, so headers are checked here first. client-go
reads no credentials for a server without TLS (clientcmd, ClientConfig), and its requests fail later without
that reason. kproxy reports the reason, and sends credentials without TLS to this host only.
"""

import re
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path

import structlog
import yaml

from kproxy.addresses import is_loopback, parse_ip
from kproxy.sources.base import SourceError

log = structlog.stdlib.get_logger(__name__)

_SENDABLE = re.compile(r"[\x20-\x7e]+")
"""Field values of HTTP (RFC 9110, 5.5), without the bytes that servers interpret differently."""

Headers = Callable[[], dict[str, str]]


class ClusterAccessError(SourceError):
    """The configuration of the access to the cluster is missing or cannot be used."""


def bearer(token: str, source: str) -> dict[str, str]:
    """The header of a token from `source`. Raises ClusterAccessError, which does not quote the token."""
    token = token.strip()
    if not token:
        raise ClusterAccessError(f"{source} is empty")
    return checked({"authorization": f"Bearer {token}"}, source)


def from_file(file: Path) -> dict[str, str]:
    """The header of a token in a file. Raises ClusterAccessError."""
    source = f"the token in {file}"
    try:
        token = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ClusterAccessError(f"{source} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError:
        raise ClusterAccessError(f"{source} is not text") from None
    return bearer(token, source)


def checked(headers: Mapping[str, str], source: str) -> dict[str, str]:
    """Return the headers. Raises ClusterAccessError, without the value, if one cannot be sent."""
    for value in headers.values():
        if _SENDABLE.fullmatch(value) is None:
            defect = "has line breaks, control characters or others that are not ASCII"
            raise ClusterAccessError(f"{source} {defect}: it cannot be sent in a header; write it anew")
    return dict(headers)


def without_userinfo(url: str) -> str:
    """A URL without user and password, which are not used and must not be shown."""
    scheme, separator, rest = url.partition("://") if "://" in url else ("", "", url)
    authority, slash, path = rest.partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


def tls_only(server: str, headers: Headers) -> Headers:
    """Headers with credentials only for a server with TLS or on this host.

    An address without a scheme means plain http (urllib3). Raises ClusterAccessError if credentials would be
    sent unencrypted. The returned function raises it too, because a token may appear later, as well as the
    errors of `headers`.
    """
    if server.lower().startswith("https://"):
        return headers
    if _is_this_host(server):
        return _announced(server, headers)

    def refuse() -> dict[str, str]:
        if headers():
            why = "the credentials are not sent over plain http: give an https:// address, or no credentials"
            raise ClusterAccessError(f"{server}: {why}")
        return {}

    refuse()
    return refuse


def yaml_fault(error: yaml.YAMLError) -> str:
    """The defect of a file, without the quoted text of the file, which may be a secret."""
    mark = getattr(error, "problem_mark", None)
    where = f" (line {mark.line + 1})" if mark is not None else ""
    return f"it is not valid YAML{where}"


def _announced(server: str, headers: Headers) -> Headers:
    announced = False

    def announce() -> dict[str, str]:
        nonlocal announced
        found = headers()
        if found and not announced:
            announced = True
            effect = "they are sent, for the server is on this host"
            log.warning("credentials_over_plain_http", server=server, effect=effect)
        return found

    return announce


def _is_this_host(server: str) -> bool:
    try:
        host = urllib.parse.urlsplit(server if "//" in server else f"//{server}").hostname or ""
        if host == "localhost":
            return True
        return is_loopback(parse_ip(host)[1])
    except ValueError:
        return False
