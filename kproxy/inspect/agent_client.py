"""Ask the kproxy that runs on this node, at the address of its metrics and status."""

import contextlib
import http.client
from typing import TypeVar

import msgspec

SECONDS = 10.0
"""The longest time for one answer."""

T = TypeVar("T")


class AgentUnavailable(Exception):
    """No kproxy answers; the message names the address and the reason."""


class AgentRefused(Exception):
    """The agent cannot answer this question; the message is its reason."""


def get(address: str, path: str, answer: type[T], seconds: float = SECONDS) -> T:
    """Request a path of `host:port` and decode the answer. Raises AgentRefused, AgentUnavailable."""
    url = f"http://{address}{path.partition('?')[0]}"
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=seconds)) as connection:
            connection.request("GET", path)
            found = connection.getresponse()
            body = found.read()
            text = body.decode(errors="replace").strip()
            if found.status == http.client.BAD_REQUEST:
                raise AgentRefused(text)
            if found.status != http.client.OK:
                raise AgentUnavailable(f"no answer from {url}: {found.status} {text or found.reason}")
            return msgspec.json.decode(body, type=answer)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise AgentUnavailable(f"no answer from {url}: {error}") from error
