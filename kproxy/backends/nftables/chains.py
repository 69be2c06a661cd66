"""Every chain of the table: the base chains, and the class chains that services share.

A frontend's verdict leads to a class chain, which decides about masquerading and policy, and from there to a
chain that picks one of N endpoints; the rules of both depend only on their names. A service port has chains
of its own if its list of endpoints is long or would be repeated for many frontends, and if it has affinity,
because the kernel can store a client's endpoint only by rules that name it.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from kproxy.addresses import Family
from kproxy.backends.nftables import names
from kproxy.backends.nftables.config import NftablesConfig

Chain = tuple[str, ...]
"""Rules, as nft reads them."""

REFUSE = "refuse"

_TRANSPORT = "meta l4proto { 6, 17, 132 }"


class BaseChain(msgspec.Struct, frozen=True):
    """A base chain: its hook and priority, and its rules."""

    hook: str
    rules: Chain


def frontend(ip: str) -> str:
    """The expression for a packet's frontend; `ip` is the family's name in nftables."""
    return f"{ip} daddr . meta l4proto . th dport"


def base_chains(config: NftablesConfig) -> dict[str, BaseChain]:
    """The base chains, by name.

    Table nat sees only the first packet of a connection; the REJECT and DROP rules match `ct state new`.
    """
    ip, mark = config.ip, config.mark
    destination = frontend(ip)
    services = (f"{destination} vmap @{names.SERVICES}",)
    refusals = [f"ct state new {destination} vmap @{names.REFUSALS}"]
    unallocated = []
    if config.reject_unallocated:
        unallocated.append(f"ct state new {ip} daddr @{names.CLUSTER_IPS} goto {REFUSE}")
    if config.service_cidrs:
        unallocated.append(f"ct state new {ip} daddr {{ {', '.join(config.service_cidrs)} }} drop")
    return {
        "nat-prerouting": BaseChain("type nat hook prerouting priority -100;", services),
        "nat-output": BaseChain("type nat hook output priority -100;", services),
        "nat-postrouting": BaseChain(
            "type nat hook postrouting priority 100;",
            (
                f"meta mark & {mark} != 0 meta mark set meta mark ^ {mark} masquerade fully-random",
                f"ct status dnat {ip} saddr . {destination} @{names.HAIRPIN} masquerade fully-random",
            ),
        ),
        "filter-input": BaseChain("type filter hook input priority 0;", tuple(refusals)),
        "filter-forward": BaseChain("type filter hook forward priority 0;", (*refusals, *unallocated)),
        "filter-output": BaseChain("type filter hook output priority 0;", (*refusals, *unallocated)),
    }


def fixed_chains() -> dict[str, Chain]:
    """The chains that elements lead to and that do not depend on services, by name."""
    return {names.LAYOUT: (), REFUSE: ("reject",)}


def firewall(family: Family, digest: str) -> tuple[str, Chain]:
    """Return the chain for the restricted frontends of a service: sources in its ranges are admitted."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    admit = f"{ip} saddr @{names.ranges(digest)} {frontend(ip)} vmap @{names.ADMITTED}"
    return f"firewall-{digest}", (admit, "drop")


@lru_cache(maxsize=8192)
def pick(family: Family, count: int, part: int, *, local: bool = False) -> tuple[str, Chain]:
    """Return the name and rules of the chain that picks one of `count` endpoints of the frontend.

    Number 0 is in no numbered map, so the last rule serves its share. It also serves a packet that was
    matched before a change of the number of endpoints and is translated after it.
    """
    ip = "ip" if family is Family.IPV4 else "ip6"
    first = f"{_TRANSPORT} {_first(ip, local=local)}"
    kind = "here" if local else "all"
    if count == 1:
        return f"{kind}-1", (first,)
    numbered = f"{frontend(ip)} . numgen random mod {count} map @{names.numbered(count, part, local=local)}"
    return f"{kind}-{count}-{part}", (f"{_TRANSPORT} dnat {ip} to {numbered}", first)


_PICK = re.compile(r"(all|here)-(\d{1,3})(?:-(\d{1,2}))?")


def pick_of(family: Family, name: str) -> Chain | None:
    """Return the rules of the picking chain of that name; None for another chain."""
    found = _PICK.fullmatch(name)
    if found is None:
        return None
    return pick(family, int(found[2]), int(found[3] or 0), local=found[1] == "here")[1]


class OwnList(msgspec.Struct, frozen=True):
    """A list of endpoints in the map of slots: its two numbers, its length, and the part of the map."""

    numbers: tuple[int, int]
    count: int
    part: int

    def key(self, slot: int) -> str:
        """The key of one of its elements."""
        return f"{self.numbers[0]} . {self.numbers[1]} . {slot}"


def own(family: Family, protocol: int, listed: OwnList, first: Sequence[bool]) -> Chain:
    """Return the rules of the chain that picks an endpoint of a list; see OwnList.

    No rule has an anonymous set, for which the kernel would walk over all sets of the table
    (nf_tables_set_alloc_name). nft requires the protocol only if the key of the map has none.

    The other rules serve packets that were matched before the list was changed and are translated after it,
    by the first endpoint of the frontend. `first`: whether it is the local one.
    """
    ip = "ip" if family is Family.IPV4 else "ip6"
    constant = " . ".join(f"numgen inc mod 1 offset {number}" for number in listed.numbers)
    drawn = f"{constant} . numgen random mod {listed.count} map @{names.slots(listed.part)}"
    return f"meta l4proto {protocol} dnat {ip} to {drawn}", *(_first(ip, local=local) for local in first)


def _first(ip: str, *, local: bool) -> str:
    """The statement that translates to the first endpoint of the frontend."""
    container = names.LOCAL_ENDPOINT_0 if local else names.ENDPOINT_0
    return f"dnat {ip} to {frontend(ip)} map @{container}"


@lru_cache(maxsize=4096)
def internal(config: NftablesConfig, target: str) -> tuple[str, Chain]:
    """Return the chain for a cluster IP; traffic from outside the cluster is masqueraded."""
    if config.masquerade_all:
        match = ""
    elif config.local_traffic is None:
        return f"cluster-{target}", (f"goto {target}",)
    else:
        match = _from_pods(config, negated=True)
    return f"cluster-{target}", (f"{match}{_mark(config)}", f"goto {target}")


@lru_cache(maxsize=4096)
def external(config: NftablesConfig, target: str) -> tuple[str, Chain]:
    """Return the chain for an outside address with policy Cluster; all traffic is masqueraded."""
    return f"external-{target}", (_mark(config), f"goto {target}")


@lru_cache(maxsize=4096)
def external_local(config: NftablesConfig, everywhere: str, here: str) -> tuple[str, Chain]:
    """Return the chain for an outside address with policy Local; `here` is "" without local endpoints.

    Pods and the node itself are not outside: they may use every endpoint. A packet without an endpoint leaves
    the chain untranslated and is dropped or rejected by the map of refusals.
    """
    rules: list[str] = []
    if config.local_traffic is not None:
        rules.append(f"{_from_pods(config)}goto {everywhere}")
    rules += [
        f"fib saddr type local {_mark(config)}",
        f"fib saddr type local goto {everywhere}",
    ]
    if here:
        rules.append(f"goto {here}")
    return f"local-{everywhere}-{here or 'none'}", tuple(rules)


_GOTO = re.compile(r"\bgoto (\S+)$")


def leads_to(rules: Chain) -> set[str]:
    """The chains that a class chain refers to."""
    return {found[1] for rule in rules if (found := _GOTO.search(rule))}


def _mark(config: NftablesConfig) -> str:
    return f"meta mark set meta mark | {config.mark}"


def _from_pods(config: NftablesConfig, *, negated: bool = False) -> str:
    local = config.local_traffic
    assert local is not None  # noqa: S101 - callers check it
    operator = "!= " if negated else ""
    if local.cidr is not None:
        return f"{config.ip} saddr {operator}{local.cidr} "
    interface = local.interface or ""
    pattern = interface[:-1] + "*" if interface.endswith("+") else interface
    return f'iifname {operator}"{pattern}" '
