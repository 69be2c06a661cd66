"""Bridges that hold pods of this node: make them pass their frames through the rules, and undo that.

Which flags kproxy set is recorded in the kernel, in one table of each family without any rule: the chain
`bridge-INDEX` means that the flag of the bridge with this interface index was off. The record is written
before the flag, so a process that is killed in between leaves a record of a flag that is off, which is
harmless. It goes with the node's restart, as the flags do, and a bridge that is made again has another index.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext

import msgspec
import structlog

from kproxy.addresses import Family
from kproxy.kernel import bridges, nft_tables, routing
from kproxy.kernel.bridges import FLAGS, Bridge, BridgeError
from kproxy.kernel.nft.commands import AddChain, AddTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import Nft, NftError

log = structlog.stdlib.get_logger(__name__)

TABLE = "kproxy-bridges"
MISSING = "br_netfilter is not loaded, so no policy judges packets between pods of one bridge"
LOAD = "modprobe br_netfilter, and name it in /etc/modules-load.d so that it is there after a restart"
_CHAIN = "bridge-"


class SetFlag(msgspec.Struct, frozen=True, order=True):
    """A flag that was set. `again`: others had cleared it."""

    bridge: str
    family: Family
    again: bool = False


class BridgeReport(msgspec.Struct, frozen=True):
    """The result of a look at the bridges: names of those that hold pods, what was set, what is wrong."""

    bridges: tuple[str, ...] = ()
    flags: tuple[SetFlag, ...] = ()
    problems: tuple[str, ...] = ()


class PodBridges:
    """Keeps the flags of bridges that hold pods set. Used by one thread.

    A bridge holds pods if a pod's address is routed to it, or if a CNI result names it or one of its ports.
    A flag stays set when the last pod is gone, because the next one may come before kproxy notices.
    """

    def __init__(
        self,
        families: Collection[Family],
        nft: Nft | None = None,
        writing: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """`writing` surrounds each transaction."""
        self._families = frozenset(families)
        self._writing = writing
        self._nft = nft or NetlinkNft()
        self._seen: set[tuple[int, Family]] = set()
        """Flags that were on at the last look."""
        self._routed: dict[str, str] = {}
        """The interface of each pod address."""
        self._names: frozenset[str] = frozenset()

    def ensure(self, addresses: Collection[str], interfaces: Collection[str]) -> BridgeReport:
        """Set the missing flags. `addresses`: the local pods'; `interfaces`: those that CNI results name."""
        try:
            found = bridges.read()
            chosen = tuple(self._holding_pods(found, addresses, interfaces))
        except BridgeError as error:
            return BridgeReport(problems=(str(error),))
        flags: list[SetFlag] = []
        problems: list[str] = []
        for bridge in chosen:
            try:
                flags += self._set(bridge)
            except (BridgeError, NftError) as error:
                problems.append(f"bridge {bridge.name}: {error}")
        if chosen and (not bridges.loaded() or any(each.filtered is None for each in chosen)):
            problems.append(MISSING)
        return BridgeReport(tuple(sorted(each.name for each in chosen)), tuple(flags), tuple(problems))

    def forget(self) -> None:
        """Forget which flags were on: they were restored, and are no drift when they are set again."""
        self._seen.clear()

    def _holding_pods(
        self, found: Mapping[int, Bridge], addresses: Collection[str], interfaces: Collection[str]
    ) -> Iterator[Bridge]:
        names = {bridge.name: bridge for bridge in found.values()}
        if names.keys() != self._names:  # routes may lead elsewhere now
            self._routed, self._names = {}, frozenset(names)
        if not names:
            return
        self._routed = {address: self._interface(address) for address in addresses}
        chosen = {name for name in self._routed.values() if name in names}
        for interface in interfaces:
            if interface in names:
                chosen.add(interface)
            elif (bridge := found.get(bridges.master(interface) or 0)) is not None:
                chosen.add(bridge.name)
        yield from (names[name] for name in sorted(chosen))

    def _interface(self, address: str) -> str:
        if known := self._routed.get(address):
            return known
        try:
            route = routing.ask(address)
        except OSError:
            return ""
        return "" if route is None or route.local else route.interface

    def _set(self, bridge: Bridge) -> list[SetFlag]:
        """Set the flags that are off, after their record. Raises BridgeError, NftError."""
        if bridge.filtered is None:
            return []
        missing = sorted(self._families - bridge.filtered)
        for family in missing:
            chain = AddChain(f"{_CHAIN}{bridge.index}")
            with self._writing():
                self._nft.commit(Transaction(family, TABLE, (AddTable(), chain)))
        if missing:
            bridges.set_filtered(bridge, dict.fromkeys(missing, True))
        again = {family for family in missing if (bridge.index, family) in self._seen}
        self._seen |= {(bridge.index, family) for family in self._families}
        return [SetFlag(bridge.name, family, family in again) for family in missing]


def restore(nft: Nft | None = None) -> bool:
    """Clear the flags that kproxy set, and remove the record; False if that failed, which is logged."""
    clean = True
    for family in Family:
        try:
            if not nft_tables.standing(TABLE, (family,)):
                continue
            _restore(family, nft or NetlinkNft())
            reason = nft_tables.remove(TABLE, (family,)).get(family)
        except (BridgeError, NftError) as error:
            reason = str(error)
        if reason:
            log.error("cleanup_failed", family=family.value, table=TABLE, reason=reason)
            clean = False
    return clean


def _restore(family: Family, nft: Nft) -> None:
    """Clear the recorded flags of one family. Raises BridgeError, NftError."""
    reading = nft.reading(family, TABLE, elements=False)
    recorded = {} if reading is None else reading.chains
    for index, bridge in bridges.read().items() if recorded else ():
        if f"{_CHAIN}{index}" in recorded and family in (bridge.filtered or ()):
            bridges.set_filtered(bridge, {family: False})
            log.info("bridge_restored", bridge=bridge.name, flag=FLAGS[family], value=0)
