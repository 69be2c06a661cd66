"""All pods of the benchmark's cluster: every pod address answers with itself.

    unshare --net python -m benchmarks.bench.answerer

Prints `here` once it runs; reads `go` when its end of the veth pair exists; prints `ready` when it listens.
It is a separate process in a separate namespace, so that packets cross a device and the program under test
shares nothing with it.
"""

import selectors
import socket
import sys
from typing import Final

from pyroute2 import IPRoute

from benchmarks import cluster

CABLE: Final = "pods"
ADDRESS: Final = "172.31.0.2"
NODE_ADDRESS: Final = "172.31.0.1"
PORT: Final = 8080


def _wire() -> None:
    """Make all pod addresses local, and cluster IPs too: an untranslated packet is refused at once."""
    with IPRoute() as route:
        loopback, cable = (route.link_lookup(ifname=name)[0] for name in ("lo", CABLE))
        for index in (loopback, cable):
            route.link("set", index=index, state="up")
        route.addr("add", index=cable, address=ADDRESS, prefixlen=24)
        for network in (cluster.CLUSTER_CIDR, cluster.SERVICE_CIDR):
            route.route("add", dst=network, oif=loopback, type="local", table=255, scope="host")
        route.route("add", dst="default", gateway=NODE_ADDRESS)


def main() -> None:
    """Answer until standard input ends."""
    print("here", flush=True)
    sys.stdin.readline()
    _wire()
    with (
        socket.create_server(("0.0.0.0", PORT), backlog=4096) as server,
        selectors.DefaultSelector() as ready,
    ):
        ready.register(server, selectors.EVENT_READ)
        ready.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in ready.select():
                if key.fileobj is not server:
                    return
                connection, _ = server.accept()
                try:
                    connection.send(socket.inet_aton(connection.getsockname()[0]))
                except OSError:
                    pass
                finally:
                    connection.close()


if __name__ == "__main__":
    main()
