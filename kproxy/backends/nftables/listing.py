"""The contents of a reading of the table, in the form in which kproxy writes them.

Elements are compared as text: with numeric protocols and ports their form is unique. Rules cannot be, because
the kernel lists them in another form than they were written; they are compared with an earlier reading.
"""

from kproxy.backends.nftables.element_owners import Contents, no_contents
from kproxy.backends.nftables.names import is_filled
from kproxy.kernel.nft.types import Reading

Structure = dict[str, tuple[str, ...]]
"""Chain -> a line for each rule, as Reading.chains has it."""


def contents_of(reading: Reading) -> Contents:
    """Return the elements of each map and set that kproxy fills, without empty ones."""
    contents = no_contents()
    elements = reading.elements or {}
    contents.update({name: found for name, found in elements.items() if found and is_filled(name)})
    return contents
