"""A number that chance draws in a rule (numgen), before anything looks at it."""

import struct
from collections.abc import Iterator

import msgspec


class Drawn(msgspec.Struct, frozen=True):
    """One of `modulus` equally likely numbers from `offset` on.

    `network`: its bytes are in network order, so that comparisons compare the number.
    """

    modulus: int
    offset: int = 0
    network: bool = False

    def swapped(self) -> "Drawn":
        """The number in the other byte order."""
        return Drawn(self.modulus, self.offset, not self.network)

    def values(self) -> Iterator[bytes]:
        """Every number that may be drawn, as a register holds it."""
        code = "!I" if self.network else "=I"
        for number in range(self.offset, self.offset + self.modulus):
            yield struct.pack(code, number)

    def share(self, operator: str, value: bytes) -> float | None:
        """The probability that a comparison holds; None if the bytes are not those of a number in order."""
        if len(value) != 4 or not (self.network or operator in {"==", "!="}):
            return None
        number: int = struct.unpack("!I" if self.network else "=I", value)[0] - self.offset
        below = min(max(number, 0), self.modulus) / self.modulus
        upto = min(max(number + 1, 0), self.modulus) / self.modulus
        shares = {"<": below, "<=": upto, ">": 1 - upto, ">=": 1 - below, "==": upto - below}
        shares["!="] = 1 - shares["=="]
        return shares[operator]
