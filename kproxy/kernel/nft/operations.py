"""A rule of the kernel as operations on registers: what an interpreter runs, and what nft would print.

Names and layouts are those of the kernel's include/uapi/linux/netfilter/nf_tables.h. Registers are counted in
words of four bytes. An expression that is not known becomes Foreign, with its name. Operations are
made of what the kernel lists in rule_decoding.py.
"""

import msgspec

OPERATORS = {0: "==", 1: "!=", 2: "<", 3: "<=", 4: ">", 5: ">="}
"""enum nft_cmp_ops."""


class Load(msgspec.Struct, frozen=True):
    """Load `length` bytes of something, in nft's words, or `@HEADER OFFSET`; "" is not known."""

    register: int
    what: str
    length: int
    shown: str = ""


class Numgen(msgspec.Struct, frozen=True):
    """Load a number from `offset` to `offset` + `modulus` - 1, by chance or in turn."""

    register: int
    random: bool
    modulus: int
    offset: int


class Constant(msgspec.Struct, frozen=True):
    """Load a constant."""

    register: int
    value: bytes


class Verdict(msgspec.Struct, frozen=True):
    """End the rule with a verdict."""

    word: str
    chain: str = ""


class Compare(msgspec.Struct, frozen=True):
    """Go on if the comparison of a register with a value is true."""

    register: int
    operator: str
    value: bytes


class Between(msgspec.Struct, frozen=True):
    """Go on if a register is in (or, `inverted`, out of) a range."""

    register: int
    first: bytes
    last: bytes
    inverted: bool = False


class Bitwise(msgspec.Struct, frozen=True):
    """Load (value & mask) ^ xor."""

    source: int
    target: int
    mask: bytes
    xor: bytes


class Byteorder(msgspec.Struct, frozen=True):
    """Swap the bytes of each word of `size` bytes, as every little-endian machine does."""

    source: int
    target: int
    length: int
    size: int


class Lookup(msgspec.Struct, frozen=True):
    """Look up a key: go on if the set has it, load its value into `target`, or apply its `verdict`."""

    name: str
    source: int
    target: int | None = None
    verdict: bool = False
    inverted: bool = False


class Translate(msgspec.Struct, frozen=True):
    """Translate the destination or the source to the address and port in registers, if any."""

    destination: bool
    address: int | None
    port: int | None
    length: int = 4


class Masquerade(msgspec.Struct, frozen=True):
    """Translate the source to an address of the outgoing device."""

    words: str = "masquerade"


class Redirect(msgspec.Struct, frozen=True):
    """Translate the destination to the node itself."""

    port: int | None = None


class Reject(msgspec.Struct, frozen=True):
    """Refuse the packet with an error."""


class Change(msgspec.Struct, frozen=True):
    """Add, update or delete an element of a set; `limited`: it goes on only if expressions of it match."""

    operation: str
    name: str
    source: int
    seconds: int = 0
    limited: bool = False


class Store(msgspec.Struct, frozen=True):
    """Set metadata of the packet or its connection, in nft's words."""

    what: str
    source: int


class Limit(msgspec.Struct, frozen=True):
    """Go on below a rate, or above it if `over`."""

    over: bool
    words: str = "limit"


class Note(msgspec.Struct, frozen=True):
    """Something that never changes the packet's way: a counter, a log line."""

    words: str


class Queue(msgspec.Struct, frozen=True):
    """Give the packet to the program that reads a queue."""

    number: int


def log_words(prefix: str | None, group: int | None) -> str:
    """The words of a Note for a log statement."""
    words = "log" if prefix is None else f'log prefix "{prefix}"'
    return words if group is None else f"{words} group {group}"


class Untrack(msgspec.Struct, frozen=True):
    """Take the packet out of connection tracking."""


class HasState(msgspec.Struct, frozen=True):
    """Go on if the connection has one of these states, in the bits of iptables (XT_CONNTRACK_STATE_BIT)."""

    states: int
    inverted: bool = False


class HasType(msgspec.Struct, frozen=True):
    """Go on if an address, `saddr` or `daddr`, is of one of these types, a bit for each RTN_*."""

    what: str
    types: int
    inverted: bool = False


class Foreign(msgspec.Struct, frozen=True):
    """An expression that is not modelled."""

    words: str


Operation = (
    Load
    | Numgen
    | Constant
    | Verdict
    | Compare
    | Between
    | Bitwise
    | Byteorder
    | Lookup
    | Translate
    | Masquerade
    | Redirect
    | Reject
    | Change
    | Store
    | Limit
    | Note
    | Queue
    | Untrack
    | HasState
    | HasType
    | Foreign
)
