"""Parse and print HTTP/1.x for probes and scrapers: one request and one answer per connection."""

import re
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus

import msgspec

LONGEST_REQUEST = 16384
"""The limit of request line and headers in bytes; kubelet, load balancers and HAProxy use far fewer."""

_END = re.compile(rb"\r?\n\r?\n")
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/([0-9])\.[0-9]\s*\Z")
_AUTHORITY = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_HAS_BODY = re.compile(
    rb"^(?:content-length[ \t]*:[ \t]*0*[1-9]|transfer-encoding[ \t]*:)", re.IGNORECASE | re.MULTILINE
)
_FIRST = re.compile(rb"(?:\r?\n)?+([^\n]*)\n")
_NO_METHOD = re.compile(rb"(?:\r?\n)?[^\r\n!#$%&'*+.^_`|~0-9A-Za-z-]")


class Answer(msgspec.Struct, frozen=True):
    """The answer to one request; `headers` are in addition to those of every answer."""

    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()


class Request(msgspec.Struct, frozen=True):
    """One request. `line` is the request line; `has_body`: a body follows; `query` follows the `?`."""

    method: str
    path: str
    line: str
    has_body: bool
    query: str = ""


class BadRequest(Exception):
    """The bytes are no valid or supported request; `status` is the HTTP status for it."""

    def __init__(self, status: HTTPStatus) -> None:
        super().__init__(status.phrase)
        self.status = status

    @property
    def answer(self) -> Answer:
        """The answer to the client, in the form of Go's net/http."""
        return Answer(f"{self.status} {self.status.phrase}".encode(), status=self.status)


def read_request(data: bytes | bytearray) -> tuple[Request, int] | None:
    """The request at the start of `data`, and the length of its head; None while the head is incomplete.

    Raises BadRequest as soon as the data cannot be a request.
    """
    if _NO_METHOD.match(data):
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    first = _FIRST.match(data)
    if first is not None and (line := _LINE.match(first[1])) is None:
        raise BadRequest(HTTPStatus.BAD_REQUEST)
    end = _END.search(data)
    if len(data) > LONGEST_REQUEST and (end is None or end.end() > LONGEST_REQUEST):
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if first is None or line is None or end is None:
        return None
    if line[3] != b"1":
        raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
    target = line[2].decode("latin-1")
    if (authority := _AUTHORITY.match(target)) is not None:
        target = target[authority.end() :] or "/"
    path, _, query = target.partition("#")[0].partition("?")
    if path.startswith("//"):
        path = "/" + path.lstrip("/")
    has_body = _HAS_BODY.search(data, first.end(), end.end()) is not None
    request = Request(line[1].decode(), path, first[1].strip().decode("latin-1"), has_body, query)
    return request, end.end()


def head(answer: Answer) -> bytes:
    """The status line and headers, with the empty line at the end."""
    lines = [
        f"HTTP/1.1 {answer.status} {HTTPStatus(answer.status).phrase}",
        "Server: kproxy",
        f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}",
        f"Content-Type: {answer.content_type}",
        "X-Content-Type-Options: nosniff",
        *(f"{name}: {value}" for name, value in answer.headers),
        f"Content-Length: {len(answer.body)}",
        "Connection: close",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def plain_error(status: HTTPStatus) -> Answer:
    """An answer that has only the phrase of its status."""
    return Answer(f"{status.phrase}\n".encode(), status=status)
