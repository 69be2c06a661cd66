"""Addresses of this node's pods from the cache of CNI results, before the API has them.

libcni writes the result of each CNI ADD to a file before the container runtime starts a container of the pod;
kubelet reports the pod's address to the API after that. So a pod can send packets before the API server, and
thus kproxy, knows its address. The file names the pod, so its labels are known from the API already.

The format is that of libcni (api.go: cachedInfo, kind cniCacheV1). Files of other kinds are ignored.
"""

import base64
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec
import structlog

from kproxy.addresses import is_link_local, is_loopback, parse_cidr, parse_ip
from kproxy.sources.directory_watch import DirectoryWatch

log = structlog.stdlib.get_logger(__name__)

DIRECTORY = Path("/var/lib/cni/results")
"""libcni's own default (CacheDir), which containerd and CRI-O keep; no runtime has a setting for it."""

RESCAN = 30.0
"""Seconds between readings without an event."""
_SETTLE, _SETTLE_MAX, _HOLD = 0.002, 0.02, 1.0
"""Seconds of DirectoryWatch: files are written at once, and a container starts tens of milliseconds later."""
_KIND = "cniCacheV1"
_MOST_BYTES = 1 << 20
_MOST_FILES = 10_000
"""More is no cache of one node's pods."""
_DEFAULT = "eth0"
"""The interface of the pod network in every pod (CRI); others, such as those of Multus, have no policies."""
_LOCAL_RANGES = "host-local"
"""An address plugin whose ranges belong to one node."""


class CniResult(msgspec.Struct, frozen=True):
    """What the pod network gave to a pod.

    `pod` is `namespace/name`. `interfaces`: those on the node's side, such as a bridge and the pod's veth.
    `ranges`: CIDRs from which this node alone gives addresses to pods, if the configuration says so.
    `at`: when the file was written, in nanoseconds since the epoch.
    """

    pod: str
    uid: str
    addresses: tuple[str, ...]
    interfaces: tuple[str, ...] = ()
    ranges: tuple[str, ...] = ()
    at: int = 0


class _Address(msgspec.Struct):
    address: str = ""


class _Old(msgspec.Struct):
    ip: str = ""


class _Interface(msgspec.Struct):
    name: str = ""
    sandbox: str = ""


class _Result(msgspec.Struct):
    """A result of any CNI version: before 0.3.0, `ip4` and `ip6` held the addresses."""

    ips: list[_Address] | None = None
    ip4: _Old | None = None
    ip6: _Old | None = None
    interfaces: list[_Interface] | None = None


class _Cached(msgspec.Struct, rename="camel"):
    kind: str = ""
    if_name: str = _DEFAULT
    cni_args: list[tuple[str, str]] | None = None
    config: str | None = None
    result: _Result | None = None


class _Range(msgspec.Struct):
    subnet: str = ""


class _Ipam(msgspec.Struct):
    type: str = ""
    subnet: str = ""
    ranges: list[list[_Range]] | None = None


class _Plugin(msgspec.Struct):
    ipam: _Ipam | None = None


class _Network(_Plugin):
    plugins: list[_Plugin] | None = None


def decode(content: bytes, at: int = 0) -> CniResult | None:
    """The result in a file; None if it names no pod or no address that a pod can be reached at.

    Raises msgspec.MsgspecError for a file that is no JSON or of another form.
    """
    cached = msgspec.json.decode(content, type=_Cached)
    if cached.kind != _KIND or cached.if_name != _DEFAULT or cached.result is None:
        return None
    arguments = dict(cached.cni_args or ())
    namespace, name = arguments.get("K8S_POD_NAMESPACE", ""), arguments.get("K8S_POD_NAME", "")
    addresses = tuple(_addresses(cached.result))
    if not namespace or not name or not addresses:
        return None
    interfaces = (each.name for each in cached.result.interfaces or () if each.name and not each.sandbox)
    return CniResult(
        f"{namespace}/{name}",
        arguments.get("K8S_POD_UID", ""),
        addresses,
        tuple(interfaces),
        tuple(_ranges(cached.config)),
        at,
    )


class CniCache:
    """The results in the directory, kept up to date by `run`; other threads read `results`.

    `changed` and what `follow` adds are called after each change, from the thread of `run`.
    """

    def __init__(self, changed: Callable[[], None], directory: Path = DIRECTORY) -> None:
        self.results: Mapping[str, CniResult] = {}
        """By name of the file."""
        self._changed = [changed]
        self._directory = directory
        self._read: dict[str, tuple[tuple[int, int, int], CniResult | None]] = {}

    def follow(self, changed: Callable[[], None]) -> None:
        """Call this as well after each change; before `run`."""
        self._changed.append(changed)

    def run(self, stop: threading.Event) -> None:
        """Follow the directory until `stop` is set."""
        watch = DirectoryWatch(self._directory, stop, settle=_SETTLE, settle_max=_SETTLE_MAX, hold=_HOLD)
        with watch:
            while not stop.is_set():
                self.refresh(watch.held())
                watch.wait(RESCAN)

    def refresh(self, being_written: frozenset[str] = frozenset()) -> None:
        """Read files that are new or changed, except those being written."""
        began = time.monotonic()
        found: dict[str, tuple[tuple[int, int, int], CniResult | None]] = {}
        try:
            paths = list(self._directory.iterdir())[:_MOST_FILES]
        except OSError:  # no such directory: this node's CNI keeps no results there
            paths = []
        for path in paths:
            if path.name in being_written:
                continue
            if (one := self._file(path)) is not None:
                found[path.name] = one
        self._read = found
        results = {name: result for name, (_, result) in found.items() if result is not None}
        if results != self.results:
            self.results = results
            cost = round((time.monotonic() - began) * 1000, 1)
            log.debug("cni_results", directory=str(self._directory), results=len(results), ms=cost)
            for changed in self._changed:
                changed()

    def _file(self, path: Path) -> tuple[tuple[int, int, int], CniResult | None] | None:
        try:
            status = path.stat()
            identity = (status.st_ino, status.st_mtime_ns, status.st_size)
            known = self._read.get(path.name)
            if known is not None and known[0] == identity:
                return known
            if status.st_size > _MOST_BYTES or not path.is_file():
                return identity, None
            content = path.read_bytes()
        except OSError:  # deleted in between
            return None
        try:
            return identity, decode(content, status.st_mtime_ns)
        except msgspec.MsgspecError as error:
            log.debug("cni_result_ignored", file=str(path), reason=str(error))
            return identity, None


def _addresses(result: _Result) -> Iterator[str]:
    texts = [each.address for each in result.ips or ()]
    texts += [old.ip for old in (result.ip4, result.ip6) if old is not None]
    for text in texts:
        try:
            _, address = parse_ip(text.partition("/")[0])
        except ValueError:
            continue
        if not is_loopback(address) and not is_link_local(address):
            yield address


def _ranges(config: str | None) -> Iterator[str]:
    """The ranges that host-local assigns from, of every plugin of the network."""
    try:
        network = msgspec.json.decode(base64.b64decode(config or ""), type=_Network)
    except (ValueError, msgspec.MsgspecError):
        return
    for plugin in (network, *(network.plugins or ())):
        ipam = plugin.ipam
        if ipam is None or ipam.type != _LOCAL_RANGES:
            continue
        for text in (ipam.subnet, *(each.subnet for ranges in ipam.ranges or () for each in ranges)):
            try:
                yield parse_cidr(text)[1]
            except ValueError:
                continue


def newest(results: Mapping[str, CniResult]) -> Mapping[tuple[str, str], CniResult]:
    """The newest result of each pod, by `namespace/name` and uid.

    A pod whose sandbox was made again can have an older one, of which the addresses may belong to another
    pod by now.
    """
    found: dict[tuple[str, str], CniResult] = {}
    for result in results.values():
        known = found.get((result.pod, result.uid))
        if known is None or known.at < result.at:
            found[result.pod, result.uid] = result
    return found
