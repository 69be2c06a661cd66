"""Accounting objects of the kernel's nfacct extension, over nfnetlink.

kube-proxy counts the packets that match its INVALID and localhost NodePort rules with two such objects.  A
rule that names a missing object makes the kernel refuse the whole restore, so the renderer must know first
whether the object exists: `ensure` returns that.

Protocol: include/uapi/linux/netfilter/nfnetlink_acct.h.
"""

from __future__ import annotations

import errno
import struct

from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, attribute

NAME_MAX = 31  # NFACCT_NAME_MAX is 32 with its terminating NUL

_SUBSYSTEM = 7  # NFNL_SUBSYS_ACCT
_NEW, _GET, _DELETE = 0, 1, 3
_NAME, _PACKETS, _BYTES = 1, 2, 3
_ABSENT = frozenset({errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT})


class NfacctError(Exception):
    """The kernel refused an operation on an accounting object; the message names both."""


class NfacctUnsupportedError(NfacctError):
    """The kernel has no accounting objects (CONFIG_NETFILTER_NETLINK_ACCT), or access is denied."""


def ensure(name: str) -> bool:
    """Create the accounting object `name` if it does not exist; an existing one keeps its counters.

    Returns False if the kernel has no accounting objects or the process may not make any.  Raises
    ValueError for an invalid name and NfacctError for any other refusal.
    """
    body = attribute(_NAME, _encoded(name))
    flags = NLM_F_CREATE | NLM_F_EXCL | NLM_F_ACK
    try:
        nfnetlink.request(_SUBSYSTEM, _NEW, flags, body)
    except OSError as error:
        if error.errno == errno.EEXIST:
            return True
        if _unsupported(error):
            return False
        msg = f"cannot create nfacct object {name}: {error.strerror}"
        raise NfacctError(msg) from error
    return True


def read() -> dict[str, tuple[int, int]]:
    """Every accounting object of the network namespace: name -> (packets, bytes).

    Raises NfacctUnsupportedError if the kernel supports none, NfacctError if the listing fails.
    """
    try:
        answers = nfnetlink.request(_SUBSYSTEM, _GET, NLM_F_DUMP)
    except OSError as error:
        msg = f"cannot list nfacct objects: {error.strerror}"
        raise (NfacctUnsupportedError if _unsupported(error) else NfacctError)(msg) from error
    return {
        answer[_NAME].rstrip(b"\0").decode("utf-8", "replace"): (
            _counter(answer.get(_PACKETS)),
            _counter(answer.get(_BYTES)),
        )
        for answer in answers
        if _NAME in answer
    }


def delete(name: str) -> None:
    """Delete an accounting object; one that does not exist is no error.

    Raises NfacctError if a rule still uses it (EBUSY) or the kernel refuses for another reason.
    """
    body = attribute(_NAME, _encoded(name))
    try:
        nfnetlink.request(_SUBSYSTEM, _DELETE, NLM_F_ACK, body)
    except OSError as error:
        if error.errno == errno.ENOENT or _unsupported(error):
            return
        msg = f"cannot delete nfacct object {name}: {error.strerror}"
        raise NfacctError(msg) from error


def _encoded(name: str) -> bytes:
    encoded = name.encode()
    if not 0 < len(encoded) <= NAME_MAX or b"\0" in encoded:
        msg = f"nfacct object name must be 1 to {NAME_MAX} bytes: {name!r}"
        raise ValueError(msg)
    return encoded + b"\0"


def _counter(value: bytes | None) -> int:
    return struct.unpack("!Q", value)[0] if value is not None and len(value) == 8 else 0


def _unsupported(error: OSError) -> bool:
    return error.errno in _ABSENT or error.errno in (errno.EPERM, errno.EACCES)
