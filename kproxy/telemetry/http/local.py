"""A server for questions of root on this node, at the socket of kproxy/node/local_socket.py and no port."""

import socket

from kproxy.node import local_socket
from kproxy.telemetry.http.server import HttpServer, Queries

_MOST = 16
"""Open connections: commands of operators."""


class LocalServer(HttpServer):
    """Serves `queries` to processes of root and of this process' user."""

    def __init__(self, queries: Queries) -> None:
        super().__init__("local", "localhost:0", {}, limit=_MOST, queries=queries)
        self._address = f"@{local_socket.NAME[1:]}"
        self._admits = local_socket.is_trusted

    def _listener(self) -> socket.socket:
        return local_socket.listener()
