"""Find the iptables programs, and the variant the rest of the node uses.

Rules written to the other variant's tables work, but nobody else sees them and both sets are traversed, so
kproxy must agree with the kubelet and the network plugin.  The order of evidence is that of Kubernetes' own
images (kubernetes-sigs/iptables-wrappers, v2): the kubelet's hint chains in nft's mangle table, then in
legacy's, then the larger rule set, then nft, unless the kernel has no nftables at all.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from kproxy.addresses import Family
from kproxy.kernel.xtables import stamps
from kproxy.kernel.xtables.programs import XtablesTools, run
from kproxy.kernel.xtables.types import (
    FailureKind,
    RestoreError,
    Variant,
    XtablesStalled,
    XtablesUnavailable,
)

_HINTS = ("KUBE-IPTABLES-HINT", "KUBE-KUBELET-CANARY")
_HINT_LINE = re.compile(rb"^:(?:KUBE-IPTABLES-HINT|KUBE-KUBELET-CANARY) ", re.MULTILINE)
_PROGRAMS = {Family.IPV4: "iptables", Family.IPV6: "ip6tables"}
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_VERSION = re.compile(r"v(\d+)\.(\d+)(?:\.(\d+))?(?:\D.*?)?(?:\((nf_tables|legacy)\))?\s*\Z")
_SECONDS = 60.0
_PROBE_RULE = b"-j RETURN"


def find_tools(
    family: Family,
    forced: Variant | None = None,
    *,
    probe: bool = True,
    search_path: str = _SEARCH_PATH,
    detect: Callable[[str], Variant] | None = None,
) -> XtablesTools:
    """The programs to use for `family`, of the variant `forced` or else the one the node uses.

    `detect` tells that one where both are installed; the answer is the same for both families, and dear where
    there are many rules. None: `detect_variant`. With `probe`, the kernel is made to show that it has the nat
    table (it is created if nobody has yet).
    Raises XtablesUnavailable: no such programs, no such family, no nat table, no permission; XtablesStalled
    if that could not be told.
    """
    _require_family(family)
    available = _available(family, search_path, forced)
    if forced is not None:
        if forced not in available:
            name = f"{_PROGRAMS[family]}-{forced}"
            reason = f"variant {forced} was asked for, but {name}-restore and {name}-save are not installed"
            raise XtablesUnavailable(reason)
        chosen = forced
    elif not available:
        name = _PROGRAMS[family]
        raise XtablesUnavailable(
            f"neither {name}-nft-restore, {name}-legacy-restore nor {name}-restore is installed"
        )
    elif len(available) == 1:
        chosen = next(iter(available))
    else:
        chosen = (detect or detect_variant)(search_path)
    tools = available[chosen]
    if probe:
        _probe(family, tools)
    return tools


def detect_variant(search_path: str = _SEARCH_PATH) -> Variant:
    """The variant that the rest of the node writes its rules to, by both families' rules."""
    if any(_nft_hint(family) for family in Family):
        return Variant.NFT
    dumps = {variant: _dumps(variant, search_path) for variant in Variant}
    if any(_HINT_LINE.search(dump) for dump in dumps[Variant.LEGACY]):
        return Variant.LEGACY
    lines = {variant: sum(dump.count(b"\n-A ") for dump in found) for variant, found in dumps.items()}
    legacy = lines[Variant.LEGACY] > lines[Variant.NFT] or not stamps.has_nftables()
    return Variant.LEGACY if legacy else Variant.NFT


def program_version(output: str) -> tuple[Variant, tuple[int, int, int]]:
    """Variant and version from what `iptables-restore --version` prints.

    Programs before 1.8 name no variant: they are legacy.  Raises ValueError for an unknown output.
    """
    found = _VERSION.search(output.strip())
    if found is None:
        msg = f"cannot tell the iptables version from {output!r}"
        raise ValueError(msg)
    variant = Variant.NFT if found[4] == "nf_tables" else Variant.LEGACY
    return variant, (int(found[1]), int(found[2]), int(found[3] or 0))


def _available(family: Family, search_path: str, forced: Variant | None) -> dict[Variant, XtablesTools]:
    """The programs of each variant that are installed, or, where one is `forced`, of that one."""
    name = _PROGRAMS[family]
    found: dict[Variant, XtablesTools] = {}
    wanted = [forced] if forced is not None else list(Variant)
    for stem in (*(f"{name}-{variant}" for variant in wanted), name):
        restore = shutil.which(f"{stem}-restore", path=search_path)
        save = shutil.which(f"{stem}-save", path=search_path)
        if restore is None or save is None or (stem == name and len(found) == len(wanted)):
            continue
        try:
            status, stdout, stderr = run([restore, "--version"], b"", _SECONDS)
            variant, version = program_version((stdout or stderr).decode("utf-8", "replace"))
        except RestoreError as error:
            if error.kind is FailureKind.INTERRUPTED:
                raise XtablesStalled(error.message) from error
            continue
        except ValueError:
            continue
        if status == 0:
            found.setdefault(variant, XtablesTools(restore, save, variant, version))
    return found


def _require_family(family: Family) -> None:
    if family is Family.IPV4:
        return
    if not Path("/proc/thread-self/net/if_inet6").exists():
        raise XtablesUnavailable("the kernel has no IPv6 (there is no /proc/net/if_inet6)")
    disabled = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6")
    if disabled.exists() and disabled.read_text(encoding="ascii").strip() == "1":
        raise XtablesUnavailable("IPv6 is disabled (net/ipv6/conf/all/disable_ipv6 is 1)")


def _nft_hint(family: Family) -> bool:
    try:
        return any(stamps.nft_chain_exists(family, "mangle", chain) for chain in _HINTS)
    except OSError:
        return False


def _dumps(variant: Variant, search_path: str) -> list[bytes]:
    found: list[bytes] = []
    for family in Family:
        # legacy-save on a namespace without legacy tables must not be run: it could load their modules
        if variant is Variant.LEGACY and not stamps.legacy_tables(family):
            continue
        save = shutil.which(f"{_PROGRAMS[family]}-{variant}-save", path=search_path)
        if save is None:
            continue
        try:
            found.append(run([save], b"", _SECONDS)[1])
        except RestoreError as error:
            if error.kind is not FailureKind.MISSING:
                raise XtablesStalled(
                    f"cannot tell which iptables variant is in use: {error.message}"
                ) from error
    return found


def _probe(family: Family, tools: XtablesTools) -> None:
    if tools.variant is Variant.LEGACY and "nat" in stamps.legacy_tables(family):
        return
    if tools.variant is Variant.NFT:
        try:
            if stamps.nft_chain_exists(family, "nat", "POSTROUTING"):
                return
        except OSError as error:
            raise XtablesUnavailable(f"nftables cannot be used: {error.strerror}") from error
    # nft makes a table's built-in chain only for a rule in it; both lines are one transaction
    text = b"*nat\n-A POSTROUTING %b\n-D POSTROUTING %b\nCOMMIT\n" % (_PROBE_RULE, _PROBE_RULE)
    try:
        status, _, stderr = run([tools.restore, "--noflush"], text, _SECONDS)
    except RestoreError as error:
        if error.kind is FailureKind.INTERRUPTED:
            raise XtablesStalled(error.message) from error
        raise XtablesUnavailable(error.message) from error
    if status < 0:
        raise XtablesStalled(f"{tools.restore} was killed by signal {-status}")
    if status:
        detail = " ".join(stderr.decode("utf-8", "replace").split())
        raise XtablesUnavailable(f"the kernel refuses {family}'s nat table to {tools.restore}: {detail}")
