"""Ask the kproxy that runs on this node for its status."""

import http.client
import urllib.request

import msgspec

from kproxy.agent.status import Status


class StatusUnavailable(Exception):
    """No kproxy answers there; the message names the address and the reason."""


def fetch(address: str, seconds: float = 10.0) -> Status:
    """Ask the kproxy that listens at `host:port`. Raises StatusUnavailable."""
    url = f"http://{address}/status"
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            url, timeout=seconds
        ) as answer:
            return msgspec.json.decode(answer.read(), type=Status)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StatusUnavailable(f"no status from {url}: {error}") from error
