"""Find the iptables programs, and the variant that the rest of the node uses.

Rules written to the other variant's tables work, but other programs do not see them and packets traverse
both, so kproxy must use the same variant as the kubelet and the network plugin.  The order of evidence is
that of Kubernetes' own images (kubernetes-sigs/iptables-wrappers, v2): the kubelet's hint chains in nft's
mangle table, then in legacy's, then the larger rule set, then nft, unless the kernel has no nftables at all.
Without evidence for a variant, the one that passes a probe is used: a kernel may have nf_tables without nat.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.nft_tables import NO_NFTABLES
from kproxy.kernel.processes import PATH, FailureReason, ProcessError, Runner
from kproxy.kernel.scratch import ScratchUnavailable, in_scratch_network
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools
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
_VERSION = re.compile(r"v(\d+)\.(\d+)(?:\.(\d+))?(?:\D.*?)?(?:\((nf_tables|legacy)\))?\s*\Z")
_SECONDS = 60.0
_PROBE_RULE = b"-j RETURN"


@dataclass(frozen=True, slots=True)
class Detected:
    """The variant that the node uses; `evidence` describes the rules that show it, "" if there are none."""

    variant: Variant
    evidence: str = ""


Detect = Callable[[str, Runner], Detected]


def find_tools(
    family: Family,
    forced: Variant | None = None,
    *,
    probe: bool = True,
    search_path: str = PATH,
    detect: Detect | None = None,
    runner: Runner | None = None,
) -> XtablesTools:
    """Return the programs to use for `family`, of variant `forced` or else the one that the node uses.

    `detect` detects the latter if both are installed (default: `detect_variant`); the result is the same for
    both families, and expensive if there are many rules. With `probe`, the nat table is probed (and created
    if it does not exist). Without evidence for a variant, the probe decides between the two; without `probe`,
    it is made in a temporary network namespace, if one can be created. Raises XtablesUnavailable: no such
    programs, no such family, no nat table, no permission; XtablesStalled if that could not be determined.
    """
    runner = runner or Runner()
    _require_family(family)
    available = _available(family, search_path, forced, runner)
    if forced is not None:
        if forced not in available:
            name = f"{_PROGRAMS[family]}-{forced}"
            reason = f"variant {forced} was asked for, but {name}-restore and {name}-save are not installed"
            raise XtablesUnavailable(reason)
        detected = Detected(forced, "asked for")
    elif not available:
        name = _PROGRAMS[family]
        raise XtablesUnavailable(
            f"neither {name}-nft-restore, {name}-legacy-restore nor {name}-restore is installed"
        )
    elif len(available) == 1:
        detected = Detected(next(iter(available)), "the only one installed")
    else:
        detected = (detect or detect_variant)(search_path, runner)
        return _select(family, detected, available, runner, probe=probe)
    tools = available[detected.variant]
    if probe:
        _probe(family, tools, runner)
    return tools


def _select(
    family: Family,
    detected: Detected,
    available: dict[Variant, XtablesTools],
    runner: Runner,
    *,
    probe: bool,
) -> XtablesTools:
    """Return the tools of the detected variant; of the other if it fails the probe and has no evidence."""
    tools = available[detected.variant]
    if detected.evidence and not probe:
        return tools
    try:
        _try(family, tools, runner, probe=probe)
    except XtablesStalled:
        raise
    except XtablesUnavailable as error:
        (other,) = (each for variant, each in available.items() if variant is not detected.variant)
        if detected.evidence:
            raise XtablesUnavailable(
                f"{error.reason}; this node's rules are of variant {detected.variant} ({detected.evidence}), "
                f"and those of variant {other.variant} would stand beside them: see that {detected.variant} "
                f"works, or ask for --iptables-variant {other.variant}"
            ) from error
        try:
            _try(family, other, runner, probe=probe)
        except XtablesStalled:
            raise
        except XtablesUnavailable as second:
            raise XtablesUnavailable(f"{error.reason}; {second.reason}") from second
        return replace(other, instead_of=error.reason)
    except ScratchUnavailable:
        pass
    return tools


def _try(family: Family, tools: XtablesTools, runner: Runner, *, probe: bool) -> None:
    """Probe the nat table, here or in a temporary namespace. Raises as `_probe`, and ScratchUnavailable."""
    if probe:
        _probe(family, tools, runner)
    else:
        in_scratch_network(lambda: _probe(family, tools, runner))


def detect_variant(search_path: str = PATH, runner: Runner | None = None) -> Detected:
    """Detect the variant that the rest of the node uses, from both families' rules.

    Raises XtablesStalled if rules of a variant cannot be read.
    """
    runner = runner or Runner()
    if any(_nft_hint(family) for family in Family):
        return Detected(Variant.NFT, "the kubelet's chains are there")
    dumps = {variant: _dumps(variant, search_path, runner) for variant in Variant}
    if any(_HINT_LINE.search(dump) for dump in dumps[Variant.LEGACY]):
        return Detected(Variant.LEGACY, "the kubelet's chains are there")
    rules = {variant: sum(dump.count(b"\n-A ") for dump in found) for variant, found in dumps.items()}
    variant = Variant.LEGACY if rules[Variant.LEGACY] > rules[Variant.NFT] else Variant.NFT
    if rules[variant]:
        other = next(each for each in Variant if each is not variant)
        return Detected(variant, f"{rules[variant]} rules, {rules[other]} in {other}")
    return Detected(Variant.NFT if generations.has_nftables() else Variant.LEGACY)


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


def _available(
    family: Family, search_path: str, forced: Variant | None, runner: Runner
) -> dict[Variant, XtablesTools]:
    """Return the installed programs by variant; if a variant is `forced`, only of that one."""
    name = _PROGRAMS[family]
    found: dict[Variant, XtablesTools] = {}
    wanted = [forced] if forced is not None else list(Variant)
    for stem in (*(f"{name}-{variant}" for variant in wanted), name):
        restore = shutil.which(f"{stem}-restore", path=search_path)
        save = shutil.which(f"{stem}-save", path=search_path)
        if restore is None or save is None or (stem == name and len(found) == len(wanted)):
            continue
        try:
            status, stdout, stderr = runner.run([restore, "--version"], timeout=_SECONDS)
            variant, version = program_version((stdout or stderr).decode("utf-8", "replace"))
        except ProcessError as error:
            if error.reason is not FailureReason.ABSENT:
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
    try:
        disabled = Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").read_text(encoding="ascii").strip() == "1"
    except FileNotFoundError:
        return
    except OSError as error:
        raise XtablesStalled(f"cannot tell whether IPv6 is enabled: {error.strerror or error}") from error
    if disabled:
        raise XtablesUnavailable("IPv6 is disabled (net/ipv6/conf/all/disable_ipv6 is 1)")


def _nft_hint(family: Family) -> bool:
    try:
        return any(generations.nft_chain_exists(family, "mangle", chain) for chain in _HINTS)
    except OSError:
        return False


def _dumps(variant: Variant, search_path: str, runner: Runner) -> list[bytes]:
    found: list[bytes] = []
    for family in Family:
        # legacy-save on a namespace without legacy tables must not be run: it could load their modules
        if variant is Variant.LEGACY and not generations.legacy_tables(family):
            continue
        stem = f"{_PROGRAMS[family]}-{variant}"
        save = shutil.which(f"{stem}-save", path=search_path)
        if save is None:
            continue
        restore = shutil.which(f"{stem}-restore", path=search_path) or save
        tools = XtablesTools(restore, save, variant, (0, 0, 0))
        try:
            found.append(SubprocessXtables(family, tools, timeout=_SECONDS, runner=runner).save())
        except RestoreError as error:
            if error.kind is not FailureKind.MISSING:
                raise XtablesStalled(
                    f"cannot tell which iptables variant is in use: {error.message}"
                ) from error
    return found


def _probe(family: Family, tools: XtablesTools, runner: Runner) -> None:
    if tools.variant is Variant.LEGACY and "nat" in generations.legacy_tables(family):
        return
    if tools.variant is Variant.NFT:
        try:
            if generations.nft_chain_exists(family, "nat", "POSTROUTING"):
                return
        except OSError as error:
            # Other errors, such as a lack of descriptors, are temporary.
            lasting = error.errno in {*NO_NFTABLES, errno.EPERM, errno.EACCES}
            kind = XtablesUnavailable if lasting else XtablesStalled
            raise kind(f"nftables cannot be used: {error.strerror or error}") from error
    # nft makes a table's built-in chain only for a rule in it; both lines are one transaction
    text = b"*nat\n-A POSTROUTING %b\n-D POSTROUTING %b\nCOMMIT\n" % (_PROBE_RULE, _PROBE_RULE)
    try:
        status, _, stderr = runner.run([tools.restore, "--noflush"], text, _SECONDS)
    except ProcessError as error:
        if error.reason is not FailureReason.ABSENT:
            raise XtablesStalled(error.message) from error
        raise XtablesUnavailable(error.message) from error
    if status < 0:
        raise XtablesStalled(f"{tools.restore} was killed by signal {-status}")
    if status:
        detail = " ".join(stderr.decode("utf-8", "replace").split())
        raise XtablesUnavailable(f"the kernel refuses {family}'s nat table to {tools.restore}: {detail}")
