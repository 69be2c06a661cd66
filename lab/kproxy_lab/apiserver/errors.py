"""API errors as Kubernetes Status objects.

Clients decide what to do next by code and reason, never by text alone, so every refusal of the
embedded server is built here, with the pair the real server would use.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Self

JSON = dict[str, Any]

REASONS = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    406: "NotAcceptable",
    409: "Conflict",
    410: "Expired",
    413: "RequestEntityTooLarge",
    415: "UnsupportedMediaType",
    422: "Invalid",
    429: "TooManyRequests",
    500: "InternalError",
    503: "ServiceUnavailable",
    504: "Timeout",
}
"""Status reason for each code, after k8s.io/apimachinery's StatusReason constants."""


class Cause(NamedTuple):
    """One entry of ``status.details.causes``: why one field was refused."""

    field: str
    reason: str
    message: str


class ApiError(Exception):
    """A request the server refuses; :meth:`status` is the body it answers with."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str | None = None,
        details: JSON | None = None,
        metadata: JSON | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.reason = REASONS.get(code, "") if reason is None else reason
        self.details = details or {}
        self.metadata = metadata or {}
        self.retry_after = retry_after

    def status(self) -> JSON:
        """Return the v1 Status object; ``retryAfterSeconds`` is in details when set."""
        details = dict(self.details)
        if self.retry_after is not None:
            details["retryAfterSeconds"] = self.retry_after
        body: JSON = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "code": self.code,
        }
        if details:
            body["details"] = details
        return body

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """400: the request cannot be understood."""
        return cls(400, message)

    @classmethod
    def not_found(cls, group: str, plural: str, name: str) -> Self:
        """404 for one object."""
        return cls(404, f'{qualified(plural, group)} "{name}" not found', details=_about(group, plural, name))

    @classmethod
    def no_such_path(cls) -> Self:
        """404 for a path that names no resource."""
        return cls(404, "the server could not find the requested resource")

    @classmethod
    def already_exists(cls, group: str, plural: str, name: str) -> Self:
        """409 AlreadyExists on create."""
        return cls(
            409,
            f'{qualified(plural, group)} "{name}" already exists',
            reason="AlreadyExists",
            details=_about(group, plural, name),
        )

    @classmethod
    def conflict(cls, group: str, plural: str, name: str, why: str) -> Self:
        """409 Conflict: the caller's precondition (usually its resourceVersion) does not hold."""
        message = f'Operation cannot be fulfilled on {qualified(plural, group)} "{name}": {why}'
        return cls(409, message, details=_about(group, plural, name))

    @classmethod
    def invalid(cls, group: str, kind: str, name: str, causes: list[Cause]) -> Self:
        """422 Invalid with one cause per refused field."""
        text = ", ".join(f"{cause.field}: {cause.message}" for cause in causes)
        details: JSON = {"name": name, "group": group, "kind": kind, "causes": [c._asdict() for c in causes]}
        return cls(422, f'{qualified(kind, group)} "{name}" is invalid: {text}', details=details)

    @classmethod
    def expired(cls, message: str, *, metadata: JSON | None = None) -> Self:
        """410 Expired: the revision asked for is compacted away."""
        return cls(410, message, metadata=metadata)

    @classmethod
    def too_large_revision(cls, asked: int, current: int) -> Self:
        """504 for a revision from the future.

        client-go recognises it by the cause ``ResourceVersionTooLarge`` or by the start of the message.
        """
        message = f"Too large resource version: {asked}, current: {current}"
        cause = {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
        return cls(504, message, details={"causes": [cause]}, retry_after=1)


def qualified(name: str, group: str) -> str:
    """Return ``services`` or ``endpointslices.discovery.k8s.io``."""
    return f"{name}.{group}" if group else name


def success(details: JSON) -> JSON:
    """Return the Status that answers a delete of a kind that does not return its object."""
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _about(group: str, plural: str, name: str) -> JSON:
    about = {"name": name, "kind": plural}
    return {**about, "group": group} if group else about
