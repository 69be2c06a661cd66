"""nftables by running `nft`: one process per transaction, one per listing."""

import re
import shutil

from kproxy.addresses import Family
from kproxy.kernel.nft.types import TABLE_FAMILY, NftError, NftFailure
from kproxy.kernel.xtables import programs, stamps
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Stamp, Variant

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_SHOWN = 400  # characters of stderr in an error
_ABSENT = "No such file or directory"
_FORBIDDEN = b"Operation not permitted"


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

    def listing(self, family: Family, table: str, *, terse: bool = False) -> str | None:
        """See Nft.listing.

        Of one table, nft 1.0.6 fetches all elements although it shall not print them (120 MB for 70,000); of
        all tables it does not.
        """
        kind = TABLE_FAMILY[family]
        if not terse:
            return self._listed("-nn", "-s", "list", "table", kind, table)
        found = re.search(
            rf"^table {kind} {re.escape(table)} \{{\n.*?^\}}\n",
            self._nft(["-nn", "-s", "-t", "list", "ruleset", kind]).decode(),
            re.MULTILINE | re.DOTALL,
        )
        return None if found is None else found[0]

    def map_listing(self, family: Family, table: str, name: str) -> str | None:
        """See Nft.map_listing."""
        return self._listed("-nn", "list", "map", TABLE_FAMILY[family], table, name)

    def stamp(self) -> Stamp | None:
        """See Nft.stamp."""
        return stamps.stamp(Family.IPV4, Variant.NFT)

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


def find_nft() -> NftProgram | None:
    """The program in the usual places, if it is installed."""
    path = shutil.which("nft", path=_PATH)
    return None if path is None else NftProgram(path)
