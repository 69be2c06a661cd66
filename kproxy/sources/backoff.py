"""How long to wait before the next try to reach the API server.

Two series are counted apart. A server that answers wrongly is burdened by every further request, so waits
grow to half a minute, as client-go's do. Where none was reached, none was burdened: nobody accepted the
connection, or a load balancer did that has no server behind it and closes it without a word, or says so
(502, 503, 504). Those waits stay short, so that a node is up to date within seconds of the server's return,
however long it was gone. A wish in Retry-After comes before either.
"""

from tenacity import RetryCallState, Retrying, wait_random_exponential

from kproxy.sources.config import KubernetesSourceConfig


class Backoff:
    """Full-jitter exponential waits (tenacity's wait_random_exponential), counted by hand.

    tenacity's own loop ends with the first success; a watch succeeds and fails for as long as it lives, and
    only a steady connection ends a series of failures.
    """

    def __init__(self, config: KubernetesSourceConfig) -> None:
        self._answered = _Series(config.backoff_seconds, config.backoff_max_seconds)
        self._unreached = _Series(config.backoff_seconds, config.unreachable_max_seconds)
        self.failures = 0

    def next(self, at_least: float | None, *, reached: bool) -> float:
        """Count a failure; seconds to wait. `reached`: an API server said something.

        What was counted while nobody could be reached is forgotten with the first answer.
        """
        self.failures += 1
        if reached:
            self._unreached.count = 0
        series = self._answered if reached else self._unreached
        return max(series.next(), at_least or 0.0)

    def reset(self) -> None:
        """Begin both series anew."""
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
