"""A table of others that nft 1.0 cannot read, as nft 1.1.3 writes it (Kubernetes issue 136786)."""

from __future__ import annotations

from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.netlink.messages import attribute
from kproxy.kernel.nft import batch
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.commands import AddTable
from kproxy.kernel.nft.connection import Connection
from kproxy.kernel.nft.messages import NFGENMSG, Message

TABLE = "host-firewall"
_INET = 1
_NEW_TABLE, _NEW_SET, _GET_SET = 0, 9, 10
_CREATE, _DUMP = 0x400, 0x300
_USERDATA = bytes.fromhex("00040200000003080004040000000100")
"""The key's byte order, and a `typeof` of an expression that is just a type, which nft 1.0 cannot read.

nft 1.1.3 says so of every set of one field that is declared with the word `type`.
"""


def write_foreign_set() -> None:
    """What `nft 'table inet host-firewall { set b { type ipv4_addr; }; }'` writes, from nft 1.1 on."""
    head = NFGENMSG.pack(_INET, 0, 0) + x.string(1, TABLE)
    declared = x.string(2, "b") + x.number(3, 0) + x.number(4, 7) + x.number(5, 4) + x.number(10, 1)
    messages = [
        Message(_NEW_TABLE, _CREATE, head, AddTable()),
        Message(_NEW_SET, _CREATE, head + declared + attribute(13, _USERDATA), AddTable()),
    ]
    batch.commit(Connection(), messages, f"inet {TABLE}")


def foreign_sets() -> list[dict[int, bytes]]:
    """What the kernel holds of the table's sets."""
    return nfnetlink.request(10, _GET_SET, _DUMP, x.string(1, TABLE), family=_INET)
