"""Look up the number of a generic netlink family in this kernel.

It uses a NetlinkSocket, which has a time limit: a library that waits without limit would block the run loop.
Layouts are those of include/uapi/linux/genetlink.h.
"""

import struct

from kproxy.kernel.netlink.messages import attribute, attributes
from kproxy.kernel.netlink.socket import NetlinkSocket

NETLINK_GENERIC = 16

_CONTROLLER = 0x10  # GENL_ID_CTRL
_GET_FAMILY = 3
_FAMILY_ID, _FAMILY_NAME = 1, 2
_HEADER = struct.Struct("=BBH")  # struct genlmsghdr
_ID = struct.Struct("=H")


def family_id(sock: NetlinkSocket, name: str) -> int:
    """Return the number of a family; the request makes the kernel load its module.

    Raises OSError, with ENOENT if the kernel has no such family.
    """
    wanted = attribute(_FAMILY_NAME, name.encode("ascii") + b"\0")
    (answer, *_) = sock.ask(_CONTROLLER, 0, _HEADER.pack(_GET_FAMILY, 1, 0) + wanted)
    return int(_ID.unpack_from(attributes(answer[_HEADER.size :])[_FAMILY_ID])[0])
