"""The addresses of API servers, so that no Service can divert kproxy's requests to them."""

import socket

from kproxy.addresses import parse_ip

Server = tuple[str, int]
"""A canonical address and a TCP port."""


def resolve(host: str, port: int) -> frozenset[Server]:
    """All addresses of a host, which may be an address itself; none if its name cannot be resolved."""
    name = host.removeprefix("[").removesuffix("]")
    try:
        return frozenset({(parse_ip(name)[1], port)})
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return frozenset()
    return frozenset(server for *_, address in found if (server := _server(address)) is not None)


def peer_of(sock: socket.socket) -> Server | None:
    """The remote address and port of a connected socket; None if it is closed or no IP socket."""
    try:
        return _server(socket.socket.getpeername(sock))
    except OSError:
        return None


def _server(address: object) -> Server | None:
    """The server of a socket address; None for link-local ones with a zone, which no service uses."""
    match address:
        case (str(ip), int(port), *_):
            try:
                return parse_ip(ip)[1], port
            except ValueError:
                return None
    return None
