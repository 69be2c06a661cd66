"""What a reading of the table holds, as kproxy writes it.

Elements are compared as text: their form has no freedom once protocols and ports are numbers. Rules are not,
for the kernel prints them in another form than they were written; they are compared with an earlier reading.
"""

from kproxy.backends.nftables.element_owners import Contents, no_contents
from kproxy.backends.nftables.names import is_filled
from kproxy.kernel.nft.types import Reading

Structure = dict[str, tuple[str, ...]]
"""Chain -> a line for each rule, as Reading.chains has it."""


def contents_of(reading: Reading) -> Contents:
    """The elements of each map and set that kproxy fills and that has any, as they were read."""
    contents = no_contents()
    elements = reading.elements or {}
    contents.update({name: found for name, found in elements.items() if found and is_filled(name)})
    return contents
