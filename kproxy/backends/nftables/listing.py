"""The contents of a reading of the table, in the form in which kproxy writes them.

Elements are compared as text: with numeric protocols and ports their form is unique. The kernel lists rules
in another form than they were written. So they are compared with an earlier reading, and without one with
the form in which kernels are known to list them.
"""

import contextlib
from collections.abc import Sequence

from kproxy.backends.nftables.chains import Chain
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.element_owners import Contents, no_contents
from kproxy.backends.nftables.names import is_filled
from kproxy.kernel.nft.listed import listed
from kproxy.kernel.nft.types import Reading

Structure = dict[str, tuple[str, ...]]
"""Chain -> a line for each rule, as Reading.chains has it."""


def contents_of(reading: Reading) -> Contents:
    """Return the elements of each map and set that kproxy fills, without empty ones."""
    contents = no_contents()
    elements = reading.elements or {}
    contents.update({name: found for name, found in elements.items() if found and is_filled(name)})
    return contents


def is_listed(config: NftablesConfig, rules: Chain, lines: Sequence[str]) -> bool:
    """Whether a reading's lines of a chain are those of these rules; False also if that cannot be known."""
    with contextlib.suppress(ValueError):  # a rule that cannot be compiled is reported when it is written
        expected = listed(config.family, rules)
        return expected is not None and expected == tuple(line.partition(" ")[2] for line in lines)
    return False
