"""How a request to the API server can fail: what callers tell apart, because each asks for another answer."""

import msgspec

from kproxy.state.problems import show


class ApiError(Exception):
    """A request or stream that failed. `retry_after` is the server's wish in seconds, if it has one."""

    retry_after: float | None = None


class StatusError(ApiError):
    """An answer other than 200, or an ERROR event. `code` is the HTTP status."""

    def __init__(self, code: int, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{code} {message}")
        self.code = code
        self.retry_after = retry_after


class DisconnectedError(ApiError):
    """No connection, or one that ended before its time."""


class UnreachableError(DisconnectedError):
    """No API server was reached, so none was burdened.

    Nobody listens, there is no route or name, the first packet is not answered, or whoever accepted the
    connection closed it without a word, as a load balancer does that has no server left.
    """


class GatewayError(StatusError, UnreachableError):
    """An answer that a proxy or load balancer gives in place of an API server: 502, 503 or 504 and no Status.

    RFC 9110, 15.6.3 to 15.6.5; an API server's own 503 and 504 have a metav1.Status as their body.
    """


class StalledError(ApiError):
    """A connection that says nothing any more."""


class ExpiredError(ApiError):
    """The watch cannot go on from where it was; the list must be read again."""


class Status(msgspec.Struct):
    """metav1.Status: the body of an error and the object of an ERROR event."""

    code: int = 0
    reason: str = ""
    message: str = ""

    def error(self, code: int, retry_after: float | None = None) -> StatusError:
        """The same as an exception; `code` stands in when the body has none."""
        return StatusError(self.code or code, self.text, retry_after)

    @property
    def text(self) -> str:
        """Reason and message on one line."""
        told = ": ".join(part for part in (self.reason, self.message) if part) or "no reason given"
        return show(told)[1:-1]
