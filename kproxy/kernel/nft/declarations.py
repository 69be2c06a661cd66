"""Declarations of maps and sets, from nft's syntax to the attributes of the message that makes them.

The types of keys and values, and the user data by which nft prints a set, are as nft 1.0.6 sends them; later
versions read them as well.
"""

import functools
import struct
from collections.abc import Sequence

import msgspec

from kproxy.kernel.netlink.messages import attribute, nested
from kproxy.kernel.nft import expressions as x
from kproxy.kernel.nft.fields import (
    BY_NAME,
    VERDICT_BYTES,
    VERDICT_TYPE,
    Field,
    total_length,
    type_number,
)
from kproxy.kernel.nft.selectors import (
    SELECTOR,
    Selector,
    bare_concatenation,
    selector,
    typeof,
    userdata,
    userdata_number,
)

ANONYMOUS, CONSTANT, INTERVAL, MAP, TIMEOUT, DYNAMIC, CONCATENATION = 0x1, 0x2, 0x4, 0x8, 0x10, 0x20, 0x80
"""enum nft_set_flags."""
SET_TABLE, SET_NAME, SET_ID = 1, 2, 10
_FLAGS, _KEY_TYPE, _KEY_LENGTH, _DATA_TYPE, _DATA_LENGTH = 3, 4, 5, 6, 7
_DESCRIPTION, _USERDATA, _EXPRESSION = 9, 13, 17
_TIMEOUT = 11  # NFTA_SET_TIMEOUT
_SIZE, _CONCAT = 1, 2  # NFTA_SET_DESC_*
_LIST_ELEMENT = 1
_KEY_ORDER, _DATA_ORDER, _MERGE, _KEY_TYPEOF, _DATA_TYPEOF, _DATA_INTERVAL = 0, 1, 2, 3, 4, 6
"""enum nftnl_udata_set_types."""
_FLAG_WORDS = {"interval": INTERVAL, "timeout": TIMEOUT, "dynamic": DYNAMIC}


class SetType(msgspec.Struct, frozen=True):
    """The declaration of a map or set: types of its elements, flags and size.

    `data` is None for sets, and empty if the values are verdicts. `key_typeof` and `data_typeof` are results
    of selectors.typeof. `size`: 0 for no limit. `timeout`: seconds after which an element expires, or 0.
    """

    key: tuple[Field, ...]
    data: tuple[Field, ...] | None = None
    flags: int = 0
    size: int = 0
    timeout: int = 0
    counter: bool = False
    key_typeof: bytes = b""
    data_typeof: bytes = b""

    @property
    def verdicts(self) -> bool:
        """Whether the values are verdicts."""
        return self.data == ()

    @property
    def ranges(self) -> bool:
        """Whether a key is a concatenation with ranges."""
        return bool(self.flags & INTERVAL)

    def attributes(self) -> bytes:
        """The attributes of the message that makes the set, without its table, name and id."""
        flags = self.flags | (MAP if self.data is not None else 0)
        description = [x.number(_SIZE, self.size)] if self.size else []
        if self.ranges and len(self.key) > 1:
            flags |= CONCATENATION
            lengths = (nested(_LIST_ELEMENT, x.number(1, field.size)) for field in self.key)
            description.append(nested(_CONCAT, *lengths))
        parts = [
            x.number(_FLAGS, flags),
            x.number(_KEY_TYPE, type_number(self.key)),
            x.number(_KEY_LENGTH, total_length(self.key)),
        ]
        if self.data is not None:
            parts.append(x.number(_DATA_TYPE, VERDICT_TYPE if self.verdicts else type_number(self.data)))
            length = VERDICT_BYTES if self.verdicts else total_length(self.data)
            parts.append(x.number(_DATA_LENGTH, length))
        if description:
            parts.append(nested(_DESCRIPTION, *description))
        if self.timeout:
            parts.append(attribute(_TIMEOUT, struct.pack("!Q", self.timeout * 1000)))
        parts.append(attribute(_USERDATA, self._userdata()))
        if self.counter:
            parts.append(nested(_EXPRESSION, x.counter()))
        return b"".join(parts)

    def _userdata(self) -> bytes:
        found = userdata_number(_KEY_ORDER, _order(self.key))
        if self.data is not None:
            found += userdata_number(_DATA_ORDER, _order(self.data))
        if self.flags & ANONYMOUS and self.ranges:
            found += userdata_number(_MERGE, 1)
        if self.key_typeof:
            found += userdata(_KEY_TYPEOF, self.key_typeof)
        if self.data_typeof:
            found += userdata(_DATA_TYPEOF, self.data_typeof)
        if self.data is not None:
            found += userdata_number(_DATA_INTERVAL, 0)
        return found


@functools.lru_cache(maxsize=64)
def set_type(declaration: str) -> SetType:
    """Parse the text between the braces of nft's `add set` or `add map`.

    Raises ValueError for syntax that kproxy does not use.
    """
    types, *others = (part.strip() for part in declaration.rstrip("; ").split(";"))
    how, _, fields = types.partition(" ")
    key, _, data = fields.partition(" : ")
    parse = {"type": _by_type, "typeof": _by_typeof}.get(how)
    if parse is None:
        raise ValueError(f"not a declaration: {declaration}")
    key_fields, key_typeof = parse(key)
    data_fields, data_typeof = parse(data) if data and data != "verdict" else ((), b"")
    flags = size = timeout = 0
    for other in others:
        word, _, value = other.partition(" ")
        if word == "flags":
            flags = functools.reduce(lambda a, b: a | b, (_FLAG_WORDS[each] for each in value.split(",")))
        elif word == "size":
            size = int(value)
        elif word == "timeout" and value.endswith("s"):
            timeout = int(value[:-1])
        elif other != "counter":
            raise ValueError(f"not a declaration: {declaration}")
    return SetType(
        key_fields,
        data_fields if data else None,
        flags,
        size,
        timeout,
        "counter" in others,
        key_typeof,
        data_typeof,
    )


@functools.lru_cache(maxsize=64)
def set_attributes(declaration: str) -> bytes:
    """The attributes of the message that makes a set, without its table, name and id; raises ValueError."""
    return set_type(declaration).attributes()


def _by_type(text: str) -> tuple[tuple[Field, ...], bytes]:
    fields = tuple(BY_NAME[name] for name in text.split(" . "))
    return fields, bare_concatenation() if len(fields) > 1 else b""


def _by_typeof(text: str) -> tuple[tuple[Field, ...], bytes]:
    selectors = [_selector(part) for part in text.split(" . ")]
    return tuple(each.field for each in selectors), typeof([each.typeof for each in selectors])


def _selector(text: str) -> Selector:
    found = SELECTOR.fullmatch(text)
    if found is None:
        raise ValueError(f"not a selector: {text}")
    return selector(found)


def _order(fields: Sequence[Field]) -> int:
    return fields[0].order if len(fields) == 1 else 0
