"""Notice each transaction on nftables when it is committed, without reading what it changed.

After the notifications about what was changed, the kernel sends one with the new generation
(nf_tables_gen_notify in net/netfilter/nf_tables_api.c), as a message of its own. A filter at the socket lets
only that one through, so a transaction costs its reader the same whatever its size.
"""

import ctypes
import errno
import socket
import struct
from typing import Self

from kproxy.kernel.nft.messages import SUBSYSTEM

_NETLINK_NETFILTER = 12
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_GROUP = 7  # NFNLGRP_NFTABLES
_SO_ATTACH_FILTER = 26
_NEW_GENERATION = 15  # NFT_MSG_NEWGEN
_RECEIVE_BYTES = 1 << 12

# Classic BPF (include/uapi/linux/bpf_common.h): code, jump if true, jump if false, operand.
_LOAD_HALF, _JUMP_EQUAL, _RETURN = 0x28, 0x15, 0x06
_INSTRUCTION = struct.Struct("=HBBI")
_TYPE_OFFSET = 4  # nlmsg_type
_WHOLE = 0xFFFFFFFF


class Commits:
    """Transactions since this was made, in the calling thread's network namespace. Raises OSError."""

    def __init__(self) -> None:
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
            _NETLINK_NETFILTER,
        )
        try:
            self._filter()
            self._socket.bind((0, 0))
            self._socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP)
        except OSError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def fileno(self) -> int:
        """The descriptor that is readable once there was a transaction."""
        return self._socket.fileno()

    def seen(self) -> bool:
        """Whether there was a transaction since the last call; True also if notifications were lost."""
        found = False
        while True:
            try:
                found = bool(self._socket.recv(_RECEIVE_BYTES)) or found
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found = True

    def _filter(self) -> None:
        # The kernel loads the two bytes of the type, which are in the order of this machine, as a big number.
        wanted = int.from_bytes(struct.pack("=H", SUBSYSTEM << 8 | _NEW_GENERATION), "big")
        program = (
            (_LOAD_HALF, 0, 0, _TYPE_OFFSET),
            (_JUMP_EQUAL, 0, 1, wanted),
            (_RETURN, 0, 0, _WHOLE),
            (_RETURN, 0, 0, 0),
        )
        code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*each) for each in program))
        described = struct.pack("HP", len(program), ctypes.addressof(code))  # struct sock_fprog
        self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, described)
