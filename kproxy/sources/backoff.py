"""Compute the wait before the next attempt to reach the API server.

There are two series of failures. Every request adds load to a server that answers with errors, so those waits
grow to 30 s, as in client-go. If no server was reached, no load is added: the connection was not accepted, or
a load balancer without a server closed it without an answer or answered 502, 503 or 504. Those waits stay
short, so that a node is up to date within seconds of the server's return, independent of the length of the
outage. Retry-After takes precedence over both.
"""

from tenacity import RetryCallState, Retrying, wait_random_exponential

from kproxy.sources.config import KubernetesSourceConfig


class Backoff:
    """Full-jitter exponential waits (tenacity's wait_random_exponential) with its own count of failures.

    tenacity's loop ends with the first success; a watch succeeds and fails repeatedly, and only a steady
    connection ends a series of failures.
    """

    def __init__(self, config: KubernetesSourceConfig) -> None:
        self._answered = _Series(config.backoff_seconds, config.backoff_max_seconds)
        self._unreached = _Series(config.backoff_seconds, config.unreachable_max_seconds)
        self.failures = 0

    def next(self, at_least: float | None, *, reached: bool) -> float:
        """Count a failure; return the seconds to wait. `reached`: an API server answered.

        The first answer resets the count of failures to reach a server.
        """
        self.failures += 1
        if reached:
            self._unreached.count = 0
        series = self._answered if reached else self._unreached
        return max(series.next(), at_least or 0.0)

    def reset(self) -> None:
        """Reset both series."""
        self._answered.count = self._unreached.count = self.failures = 0


class _Series:
    def __init__(self, first: float, longest: float) -> None:
        self._wait = wait_random_exponential(multiplier=first, max=longest)
        self._state = RetryCallState(Retrying(wait=self._wait), None, (), {})
        self.count = 0

    def next(self) -> float:
        self.count += 1
        self._state.attempt_number = self.count
        return self._wait(self._state)
