"""What the program nft says of the calling thread's network namespace, to compare with what kproxy says."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict

import pytest

from kproxy.addresses import Family
from kproxy.backends.nftables.element_owners import Contents
from kproxy.backends.nftables.names import SERVICES, TABLE
from kproxy.kernel.nft.commands import TABLE_FAMILY

_CONTAINER = re.compile(
    r"^\t(?:map|set) (\S+) \{\n(?:(?!\t\}).*\n)*?\t\telements = \{([^}]*)\}", re.MULTILINE
)
_CHAIN = re.compile(r"^\tchain (\S+) \{\n((?:\t\t.*\n)*)\t\}", re.MULTILINE)


def nft(*arguments: str, script: str = "") -> str:
    """Run nft, which must succeed; returns what it prints. Skips the test where there is none."""
    if shutil.which("nft") is None:
        pytest.skip("nft is not installed")
    done = subprocess.run(["nft", *arguments], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def write(script: str) -> None:
    """Carry out a script as one transaction."""
    nft("-f", "-", script=script)


def listing(family: Family, table: str = TABLE) -> str:
    """The table as nft prints it, numbers for names and without counts."""
    return nft("-nn", "-s", "list", "table", TABLE_FAMILY[family], table)


def read_elements(text: str) -> Contents:
    """The elements of each map and set of a listing that has any."""
    contents: Contents = defaultdict(dict)
    for name, body in _CONTAINER.findall(text):
        found = contents[name]
        if name == SERVICES:
            body = body.replace(" counter", "")  # noqa: PLW2901
        for element in body.split(","):
            key, _, value = element.partition(" : ")
            found[key.strip()] = value.strip()
    return contents


def read_chains(text: str) -> dict[str, tuple[str, ...]]:
    """The chains with their rules; where the kernel calls them from is the first line of those it calls."""
    return {name: tuple(line.strip() for line in body.splitlines()) for name, body in _CHAIN.findall(text)}


def read_containers(text: str) -> frozenset[str]:
    """The maps and sets that are there, as `map NAME` and `set NAME`."""
    return frozenset(re.findall(r"^\t((?:map|set) \S+) \{$", text, re.MULTILINE))
