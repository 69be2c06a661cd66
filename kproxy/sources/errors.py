"""The failures of a request to the API server that callers handle differently."""

import msgspec

from kproxy.state.problems import show


class ApiError(Exception):
    """A request or stream failed. `retry_after` is the server's Retry-After in seconds, if there is one."""

    retry_after: float | None = None


class StatusError(ApiError):
    """An answer other than 200, or an ERROR event. `code` is the HTTP status."""

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.retry_after = retry_after


class DisconnectedError(ApiError):
    """No connection, or one that ended early."""


class UnreachableError(DisconnectedError):
    """No API server was reached, so the request added no load to one.

    The port is closed, there is no route or name, the first packet is not answered, or the connection was
    accepted and closed without an answer, as by a load balancer that has no server left.
    """


class GatewayError(StatusError, UnreachableError):
    """The answer of a proxy or load balancer instead of an API server: 502, 503 or 504 without a Status.

    RFC 9110, 15.6.3 to 15.6.5; an API server's own 503 and 504 have a metav1.Status as their body.
    """


class StalledError(ApiError):
    """A connection on which no data arrives any more."""


class ExpiredError(ApiError):
    """The watch cannot continue from its resourceVersion; the list must be read again."""


class Status(msgspec.Struct):
    """metav1.Status: the body of an error and the object of an ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""

    def error(self, code: int, retry_after: float | None = None) -> StatusError:
        """Return it as an exception; `code` is used if the body has none."""
        return StatusError(self.code or code, self.text, retry_after)

    @property
    def text(self) -> str:
        """Reason and message on one line."""
        text = ": ".join(part for part in (self.reason, self.message) if part) or "no reason given"
        return show(text)[1:-1]
