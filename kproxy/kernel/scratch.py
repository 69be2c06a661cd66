"""Run a probe in a temporary network namespace.

The namespace has its own tables, sets, virtual servers and devices, in the node's kernel. Creating one
requires CAP_SYS_ADMIN, which a proxy need not have.
"""

import ctypes
import os
import threading
from collections.abc import Callable
from typing import TypeVar

_CLONE_NEWNET = 0x40000000  # include/uapi/linux/sched.h

T = TypeVar("T")


class ScratchUnavailable(Exception):
    """No network namespace can be created; the message says why."""


def in_scratch_network(work: Callable[[], T]) -> T:
    """Run `work` in a new network namespace, on a thread of its own, and return what it returns.

    Its exceptions are raised here. Open sockets keep the namespace alive. Raises ScratchUnavailable if
    nothing was run.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def body() -> None:
        try:
            _enter_new()
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again by the caller's thread
            errors.append(error)

    thread = threading.Thread(target=body, name="scratch-network")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return results[0]


def _enter_new() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNET):
        reason = os.strerror(ctypes.get_errno())
        raise ScratchUnavailable(f"no network namespace for trials can be made: {reason}")
