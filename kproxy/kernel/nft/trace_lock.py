"""A name that one living process of a network namespace can have: whether a trace's objects are in use.

The names of abstract Unix sockets belong to a network namespace, as tables do, and end with the process.
"""

import socket


def lock(table: str) -> socket.socket:
    """Take the name of a table while the returned socket is open.

    Raises OSError if another process has it.
    """
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        held.bind(f"\0{table}")
    except OSError:
        held.close()
        raise
    return held
