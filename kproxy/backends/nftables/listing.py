"""Elements as kproxy writes them and chains line by line, of a reading or of what `nft -nn -s list` prints.

Elements are compared as text: their form has no freedom once protocols and ports are numbers. Rules are not,
for every version of nft prints them differently; they are compared with an earlier listing or reading.
"""

import re

from kproxy.backends.nftables.ledger import Contents, no_contents
from kproxy.backends.nftables.names import SERVICES, is_filled
from kproxy.kernel.nft.types import Reading

Structure = dict[str, tuple[str, ...]]
"""Chain -> a line for each rule, as nft prints it or as Reading.chains has it."""

_CONTAINER = re.compile(
    r"^\t(?:map|set) (\S+) \{\n(?:(?!\t\}).*\n)*?\t\telements = \{([^}]*)\}", re.MULTILINE
)
_CHAIN = re.compile(r"^\tchain (\S+) \{\n((?:\t\t.*\n)*)\t\}", re.MULTILINE)


def contents_of(reading: Reading) -> Contents:
    """The elements of each map and set that kproxy fills and that has any, as they were read."""
    if reading.elements is None:
        return read_elements(reading.listing)
    contents = no_contents()
    contents.update({name: found for name, found in reading.elements.items() if found and is_filled(name)})
    return contents


def read_elements(text: str) -> Contents:
    """The elements of each map and set that kproxy fills and that has any."""
    contents = no_contents()
    for name, body in _CONTAINER.findall(text):
        if not is_filled(name):
            continue
        found = contents[name]
        if name == SERVICES:
            body = body.replace(" counter", "")  # noqa: PLW2901
        for element in body.split(","):
            key, _, value = element.partition(" : ")
            found[key.strip()] = value.strip()
    return contents


def read_chains(text: str) -> Structure:
    """The chains with their rules; where the kernel calls them from is the first line of those it calls."""
    return {name: tuple(line.strip() for line in body.splitlines()) for name, body in _CHAIN.findall(text)}


def read_containers(text: str) -> frozenset[str]:
    """The maps and sets that are there, as `map NAME` and `set NAME`."""
    return frozenset(re.findall(r"^\t((?:map|set) \S+) \{$", text, re.MULTILINE))
