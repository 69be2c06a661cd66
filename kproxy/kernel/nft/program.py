"""nftables by running `nft`: one process per transaction. What is there is read without it."""

import errno
import re
import shutil
from collections.abc import Callable, Mapping
from typing import TypeVar

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.nft import dump
from kproxy.kernel.nft.decoding import Counts, UndecodableError
from kproxy.kernel.nft.types import TABLE_FAMILY, NftError, NftFailure, Reading
from kproxy.kernel.xtables import programs, stamps
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Stamp, Variant

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_SHOWN = 400  # characters of stderr in an error
_ABSENT = "No such file or directory"
_FORBIDDEN = b"Operation not permitted"
_COUNTED = re.compile(r"([^\s,{][^,{]*?) counter packets (\d+) bytes (\d+)")
_READINGS = 10
"""How often a table is read anew because somebody committed something meanwhile."""

T = TypeVar("T")


class NftProgram:
    """`nft` at `path`, an absolute path."""

    def __init__(self, path: str) -> None:
        self.path = path

    def version(self) -> tuple[int, int, int]:
        """The program's version, e.g. (1, 0, 6). Raises NftError."""
        printed = self._nft(["--version"]).decode("ascii", "replace")
        found = _VERSION.search(printed)
        if found is None:
            raise NftError(NftFailure.MISSING, f"{self.path} --version printed {printed[:60]!r}")
        return int(found[1]), int(found[2]), int(found[3])

    def run(self, script: str) -> None:
        """See Nft.run."""
        self._nft(["-f", "-"], script.encode())

    def listing(self, family: Family, table: str) -> str | None:
        """See Nft.listing."""
        return self._listed("-nn", "-s", "list", "table", TABLE_FAMILY[family], table)

    def reading(self, family: Family, table: str, *, elements: bool = True) -> Reading | None:
        """See Nft.reading. Raises NftError also if the ruleset changes faster than it can be read."""
        for _ in range(_READINGS):
            before = self.stamp()
            found = self._read(family, table, elements=elements)
            if self.stamp() == before:
                return found
        raise NftError(NftFailure.INTERRUPTED, "the ruleset kept changing while it was read")

    def counts(self, family: Family, table: str, name: str) -> Mapping[str, Counts] | None:
        """See Nft.counts."""
        try:
            return _asked(lambda: dump.counts(family, table, name))
        except UndecodableError:
            listed = self._listed("-nn", "list", "map", TABLE_FAMILY[family], table, name)
        if listed is None:
            return None
        return {key: (int(packets), int(octets)) for key, packets, octets in _COUNTED.findall(listed)}

    def stamp(self) -> Stamp | None:
        """See Nft.stamp."""
        return stamps.stamp(Family.IPV4, Variant.NFT)

    def _read(self, family: Family, table: str, *, elements: bool) -> Reading | None:
        try:
            return _asked(lambda: dump.reading(family, table, elements=elements))
        except UndecodableError:
            text = self.listing(family, table)
            found = _asked(lambda: dump.reading(family, table, elements=False))
        return None if found is None or text is None else msgspec.structs.replace(found, listing=text)

    def _listed(self, *arguments: str) -> str | None:
        try:
            return self._nft([*arguments]).decode()
        except NftError as error:
            if error.kind is NftFailure.REFUSED and _ABSENT in error.message:
                return None
            raise

    def _nft(self, arguments: list[str], stdin: bytes = b"") -> bytes:
        try:
            status, printed, stderr = programs.run([self.path, *arguments], stdin)
        except RestoreError as error:
            missing = error.kind is FailureKind.MISSING
            kind = NftFailure.MISSING if missing else NftFailure.INTERRUPTED
            raise NftError(kind, error.message) from error
        if not status:
            return printed
        message = " ".join(stderr.decode("utf-8", "replace").split())
        if len(message) > _SHOWN:
            message = message[:_SHOWN] + "..."
        if status < 0:
            raise NftError(NftFailure.INTERRUPTED, message or f"nft was ended by signal {-status}")
        kind = NftFailure.MISSING if _FORBIDDEN in stderr else NftFailure.REFUSED
        raise NftError(kind, message or f"nft exited with status {status}")


def _asked(question: Callable[[], T]) -> T:
    """What the kernel answers. Raises NftError, and UndecodableError."""
    try:
        return question()
    except OSError as error:
        kind = NftFailure.MISSING if error.errno in {errno.EPERM, errno.EACCES} else NftFailure.INTERRUPTED
        raise NftError(kind, f"cannot read the table: {error.strerror or error}") from error


def find_nft() -> NftProgram | None:
    """The program in the usual places, if it is installed."""
    path = shutil.which("nft", path=_PATH)
    return None if path is None else NftProgram(path)
