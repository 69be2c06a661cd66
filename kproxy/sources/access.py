"""Query an API server's version and kproxy's permissions (SelfSubjectAccessReview)."""

from urllib.parse import urlencode

import msgspec

import kproxy
from kproxy.sources.cluster import ClusterAccess, Session, load_session
from kproxy.sources.errors import DisconnectedError, Status, StatusError

_REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_CONNECT_SECONDS, _READ_SECONDS = 5.0, 15.0


class AccessReview(msgspec.Struct, frozen=True, rename="lower", omit_defaults=True):
    """spec.resourceAttributes of a SelfSubjectAccessReview; without a name it covers all objects."""

    verb: str
    group: str
    resource: str
    name: str = ""

    def __str__(self) -> str:
        group = f".{self.group}" if self.group else ""
        return f"{self.verb} {self.resource}{group}" + (f" {self.name}" if self.name else "")


class _Version(msgspec.Struct):
    gitVersion: str = "unknown"  # noqa: N815


class _ReviewStatus(msgspec.Struct):
    allowed: bool = False


class _ReviewAnswer(msgspec.Struct):
    status: _ReviewStatus


class _List(msgspec.Struct):
    items: list[msgspec.Raw] | None = None


class ApiProbe:
    """Queries one API server. The constructor raises ClusterAccessError for an unusable configuration."""

    def __init__(self, access: ClusterAccess) -> None:
        self._session: Session = load_session(access)
        self.server = self._session.host

    def version(self) -> str:
        """The server's version. Raises ApiError, ClusterAccessError."""
        return msgspec.json.decode(self._ask("GET", "/version", None), type=_Version).gitVersion

    def can_i(self, review: AccessReview) -> bool:
        """Whether kproxy has this permission. Raises ApiError, ClusterAccessError."""
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": msgspec.to_builtins(review)},
        }
        return msgspec.json.decode(self._ask("POST", _REVIEWS, body), type=_ReviewAnswer).status.allowed

    def has_node(self, name: str) -> bool:
        """Whether there is a Node of this name. Raises ApiError, ClusterAccessError."""
        query = urlencode({"fieldSelector": f"metadata.name={name}"})
        return bool(msgspec.json.decode(self._ask("GET", f"/api/v1/nodes?{query}", None), type=_List).items)

    def _ask(self, method: str, path: str, body: object) -> bytes:
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        headers = self._session.headers() | {
            "accept": "application/json",
            "content-type": "application/json",
            "user-agent": f"kproxy/{kproxy.__version__}",
        }
        try:
            answer = self._session.pool.request(
                method,
                f"{self.server}{path}",
                body=None if body is None else msgspec.json.encode(body),
                headers=headers,
                timeout=Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS),
                retries=False,
                redirect=False,
            )
        except (HTTPError, OSError) as error:
            raise DisconnectedError(f"{self.server}: {error}") from error
        if answer.status in (200, 201):
            return bytes(answer.data)
        raise _status_error(answer.status, bytes(answer.data))


def _status_error(code: int, body: bytes) -> StatusError:
    try:
        return msgspec.json.decode(body, type=Status).error(code)
    except msgspec.MsgspecError:
        return Status().error(code)
