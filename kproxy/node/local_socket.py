"""The socket at which a kproxy answers questions that are not for everyone: who talks to whom.

It is an abstract unix socket beside the lock (instance.py): its name belongs to the network namespace, so
each node of a machine has its own, `kubectl exec` into the pod and a command on the host find it, the file
system may be read-only, and nothing is left after a kill. Such a socket has no mode, so both ends ask the
kernel which user is at the other one.
"""

import os
import socket

from kproxy.node.holder import CREDENTIALS

NAME = "\0kproxy.io/queries"

_SECONDS = 10.0


class Untrusted(ConnectionError):
    """The socket has the name, but is neither root's nor this user's."""


def listener() -> socket.socket:
    """A socket that listens at the name, in the network namespace of the calling thread. Raises OSError."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.bind(NAME)
        made.listen()
    except OSError:
        made.close()
        raise
    return made


def connect(seconds: float = _SECONDS) -> socket.socket:
    """A connection to the kproxy of this network namespace. Raises OSError, Untrusted."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(NAME)
        if not is_trusted(made):
            raise Untrusted("another user's process has the name of kproxy's socket")
    except OSError:
        made.close()
        raise
    return made


def is_trusted(stream: socket.socket) -> bool:
    """Whether the other end is root's or this user's process."""
    _, uid, _ = CREDENTIALS.unpack(stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size))
    return uid in {0, os.geteuid()}
