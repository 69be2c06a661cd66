"""The state of kproxy in a kernel, in any mode, as named lists that can be compared."""

import json
import re

from kproxy_lab.lab import Namespace
from tests.kernel.nft_oracle import read_chains, read_containers, read_elements
from tests.packets.modes import Capability, Mode
from tests.packets.objects import FAMILIES, FAMILY_NAMES
from tests.support import reference_sync

TABLES = {4: "ip kproxy", 6: "ip6 kproxy"}

_BUILT_IN = {"PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"}
_SIZES = re.compile(r" (?:hashsize|bucketsize|initval) \S+")


def held(mode: Mode, place: Namespace) -> dict[str, list[str]]:
    """Return what the kernel holds of both families, by the name of a chain, map, set or kind."""
    found = {
        f"{FAMILY_NAMES[family]} {chain}": rules
        for family in FAMILIES
        for chain, rules in reference_sync.rules_in(place, mode.program(family, "save")).items()
        if rules or chain.partition("/")[2] not in _BUILT_IN
    }
    if Capability.VIRTUAL_SERVERS in mode.capabilities:
        found |= _virtual(place)
    if Capability.NFTABLES in mode.capabilities:
        for table in TABLES.values():
            found |= _table(place, table)
    return found


def _table(place: Namespace, table: str) -> dict[str, list[str]]:
    """Return the chains, maps and sets of an nftables table with their elements; empty without the table."""
    text = place.run(["nft", "-nn", "-s", "list", "table", *table.split()], check=False).stdout
    found = {f"{table} {container}": [""] for container in read_containers(text)}
    found |= {f"{table} chain {name}": list(rules) for name, rules in read_chains(text).items()}
    return found | {
        f"{table} elements of {name}": sorted(f"{key} : {value}" for key, value in elements.items())
        for name, elements in read_elements(text).items()
        if elements
    }


def _virtual(place: Namespace) -> dict[str, list[str]]:
    """Return virtual servers, sets and addresses, except draining ones, which a fresh sync does not have."""
    lines = [line.split() for line in place.run(["ipvsadm", "-Sn"]).stdout.splitlines()]
    targets = {(words[2], words[-1]) for words in lines if words[0] == "-a"}
    ending = {server for server, _ in targets} - {server for server, weight in targets if weight != "0"}
    draining = {server.rpartition(":")[::2] for server in ending}
    staying = {words[2].rpartition(":")[0] for words in lines if words[2] not in ending}
    ips = {ip.strip("[]") for ip, _ in draining if ip not in staying}
    passing = ips | {f"{ip.strip('[]')},tcp:{port}" for ip, port in draining}
    entries = [
        line
        for line in _SIZES.sub("", place.run(["ipset", "save"]).stdout).splitlines()
        if passing.isdisjoint(line.split()[2:])
    ]
    kept = [
        words for words in lines if words[2] not in ending and not (words[0] == "-a" and words[-1] == "0")
    ]
    return {
        "virtual servers": sorted(" ".join(words) for words in kept),
        "sets": sorted(entries),
        "addresses": sorted(
            address
            for address in addresses(place).get("kube-ipvs0", ())
            if address.partition("/")[0] not in ips
        ),
    }


def addresses(place: Namespace) -> dict[str, list[str]]:
    """Return the addresses of each interface with their prefix lengths, except those of link scope."""
    found: dict[str, list[str]] = {}
    for link in json.loads(place.run(["ip", "-json", "address"]).stdout):
        found[link["ifname"]] = [
            f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"] if each["scope"] != "link"
        ]
    return found
