"""Request the status of the kproxy that runs on this node, once or until it is healthy."""

import contextlib
import http.client
import time
from collections.abc import Callable

import msgspec

from kproxy.telemetry.status import Status

REQUEST_SECONDS = 10.0
"""The longest time for one answer."""

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
"""Seconds between two requests of `wait`; each pause is twice the one before.

The agent answers from memory, so requests are cheap. A request that stays open until the state changes would
occupy one of its few connections all the time.
"""


class StatusUnavailable(Exception):
    """No kproxy answers; the message names the address and the reason."""


def fetch(address: str, seconds: float = REQUEST_SECONDS) -> Status:
    """Request the status of the kproxy that listens at `host:port`. Raises StatusUnavailable."""
    url = f"http://{address}/status"
    try:
        with contextlib.closing(http.client.HTTPConnection(address, timeout=seconds)) as connection:
            connection.request("GET", "/status")
            answer = connection.getresponse()
            if answer.status != http.client.OK:
                raise StatusUnavailable(f"no status from {url}: {answer.status} {answer.reason}")
            return msgspec.json.decode(answer.read(), type=Status)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise StatusUnavailable(f"no status from {url}: {error}") from error


def wait(
    address: str,
    seconds: float,
    ask: Callable[[str, float], Status] = fetch,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> Status:
    """Repeat the request until the agent is healthy (and so has synced) or `seconds` have passed.

    Returns the last answer, healthy or not. Raises StatusUnavailable if the last request had no answer.
    """
    deadline = clock() + seconds
    rest = FIRST_PAUSE
    while True:
        left = deadline - clock()
        try:
            found = ask(address, min(REQUEST_SECONDS, max(left, FIRST_PAUSE)))
        except StatusUnavailable:
            if clock() + rest > deadline:
                raise
        else:
            if found.healthy or clock() + rest > deadline:
                return found
        pause(rest)
        rest = min(2 * rest, LONGEST_PAUSE)
