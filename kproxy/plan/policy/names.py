"""Names of groups and sets: a hash of the content, so that a name never gets another meaning.

80 bits, because tenants choose the content: a selector whose set has the name of another tenant's set cannot
be found by trying (2^80). Names do not depend on the IP family or on the node.
"""

import functools
import hashlib

import msgspec

from kproxy.plan.model import Protocol

_ENCODER = msgspec.msgpack.Encoder(order="deterministic")


def content_name(prefix: str, content: object) -> str:
    """`PREFIX-HASH`, 20 hexadecimal digits, for any content of plain values and structs."""
    return f"{prefix}-{hashlib.blake2b(_ENCODER.encode(content), digest_size=10).hexdigest()}"


@functools.lru_cache(maxsize=1024)
def named_port_set(name: str, protocol: Protocol) -> str:
    """The name in PolicyTable.named of the set for a port name (PortMatch.name) and a protocol."""
    return content_name("n", (name, protocol))
