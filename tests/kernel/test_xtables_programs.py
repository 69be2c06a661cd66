"""SubprocessXtables against the installed programs: each test in its own network namespace."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.backend import IptablesBackend
from kproxy.backends.iptables.cleanup import cleanup
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.layout import StandardLayout
from kproxy.kernel import generations
from kproxy.kernel.netlink import nfnetlink
from kproxy.kernel.xtables import detect
from kproxy.kernel.xtables.detect import find_tools, program_version
from kproxy.kernel.xtables.lock import lock_file_in_use
from kproxy.kernel.xtables.programs import SubprocessXtables, XtablesTools, without_counters
from kproxy.kernel.xtables.types import (
    FailureKind,
    RestoreError,
    Variant,
    XtablesStalled,
    XtablesUnavailable,
)
from tests.kernel.namespace import fresh_network

both_variants = pytest.mark.parametrize("variant", list(Variant))
both_families = pytest.mark.parametrize("family", list(Family))
HINT = b"*mangle\n:KUBE-IPTABLES-HINT - [0:0]\nCOMMIT\n"


def _xtables(variant: Variant, family: Family = Family.IPV4, lock_wait: int = 5) -> SubprocessXtables:
    try:
        tools = find_tools(family, variant, probe=False)
    except XtablesUnavailable as error:
        pytest.skip(error.reason)
    return SubprocessXtables(family, tools, lock_wait=lock_wait)


@both_families
@both_variants
@fresh_network
def test_what_is_restored_is_saved(variant: Variant, family: Family) -> None:
    xtables = _xtables(variant, family)
    assert xtables.save() == b""
    xtables.restore(b'*nat\n:KUBE-A - [0:0]\n-A KUBE-A -m comment --comment "a b" -j RETURN\nCOMMIT\n')
    assert xtables.save("nat") == (
        b"*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        b":POSTROUTING ACCEPT [0:0]\n"
        b':KUBE-A - [0:0]\n-A KUBE-A -m comment --comment "a b" -j RETURN\nCOMMIT\n'
    )
    assert xtables.save() == xtables.save("nat")


@both_variants
@fresh_network
def test_a_refused_section_leaves_the_tables_before_it(variant: Variant) -> None:
    xtables = _xtables(variant)
    with pytest.raises(RestoreError) as caught:
        xtables.restore(
            b"*filter\n:GOOD - [0:0]\nCOMMIT\n*nat\n:BAD - [0:0]\n-A BAD -p udp -m tcp -j RETURN\nCOMMIT\n"
        )
    assert caught.value.kind is FailureKind.RULE
    assert caught.value.line in (6, 7)
    saved = xtables.save()
    assert b":GOOD " in saved
    assert b":BAD " not in saved


REFUSALS: list[tuple[str, bytes]] = [
    ("unknown match", b"*nat\n:A - [0:0]\n-A A -m nosuch -j RETURN\nCOMMIT\n"),
    ("jump to nowhere", b"*nat\n:A - [0:0]\n-A A -j NOSUCH\nCOMMIT\n"),
    ("chain in use", b"*nat\n:AA - [0:0]\n-A OUTPUT -j AA\n-X AA\nCOMMIT\n"),
    ("loop", b"*nat\n:A - [0:0]\n:B - [0:0]\n-A OUTPUT -j A\n-A A -j B\n-A B -j A\nCOMMIT\n"),
    ("position", b"*nat\n:A - [0:0]\n-I A 3 -j RETURN\nCOMMIT\n"),
    ("not in that table", b"*filter\n:A - [0:0]\n-A A -p tcp -j DNAT --to-destination 1.1.1.1:1\nCOMMIT\n"),
]


@both_variants
@pytest.mark.parametrize(("text"), [text for _, text in REFUSALS], ids=[name for name, _ in REFUSALS])
@fresh_network
def test_refused_rules_are_distinguished_from_other_failures_and_located(
    variant: Variant, text: bytes
) -> None:
    with pytest.raises(RestoreError) as caught:
        _xtables(variant).restore(text)
    assert caught.value.kind is FailureKind.RULE
    assert caught.value.line is not None
    assert 2 < caught.value.line <= text.count(b"\n")


def test_the_lock_is_the_one_that_iptables_programs_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XTABLES_LOCKFILE", "/run/other.lock")
    assert str(lock_file_in_use()) == "/run/other.lock"
    monkeypatch.delenv("XTABLES_LOCKFILE")
    assert str(lock_file_in_use()) == "/run/xtables.lock"


@fresh_network
def test_the_holder_of_the_lock_is_named() -> None:
    xtables = _xtables(Variant.LEGACY, lock_wait=1)
    lock_file = lock_file_in_use()
    lock_file.touch()
    with lock_file.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RestoreError) as caught:
            xtables.restore(b"*filter\nCOMMIT\n")
    assert caught.value.kind is FailureKind.LOCKED
    assert str(lock_file) in caught.value.message
    assert f"held by process {os.getpid()}" in caught.value.message
    xtables.restore(b"*filter\nCOMMIT\n")


def _script(directory: Path, body: str) -> XtablesTools:
    program = directory / "program"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return XtablesTools(str(program), str(program), Variant.NFT, (1, 8, 9))


def test_a_program_that_hangs_or_dies_is_an_interruption(tmp_path: Path) -> None:
    hanging = SubprocessXtables(Family.IPV4, _script(tmp_path, "exec sleep 60"), timeout=0.2)
    with pytest.raises(RestoreError, match="did not finish") as caught:
        hanging.restore(b"")
    assert caught.value.kind is FailureKind.INTERRUPTED
    dying = SubprocessXtables(Family.IPV4, _script(tmp_path, "kill -9 $$"))
    with pytest.raises(RestoreError, match="signal 9") as caught:
        dying.restore(b"")
    assert caught.value.kind is FailureKind.INTERRUPTED


def test_a_missing_program_is_missing(tmp_path: Path) -> None:
    tools = XtablesTools(str(tmp_path / "gone"), str(tmp_path / "gone"), Variant.NFT, (1, 8, 9))
    xtables = SubprocessXtables(Family.IPV4, tools)
    with pytest.raises(RestoreError, match="gone") as caught:
        xtables.restore(b"")
    assert caught.value.kind is FailureKind.MISSING


@pytest.mark.root
@fresh_network  # the kernel is asked for its tables first
def test_a_missing_program_is_missing_for_a_reader(tmp_path: Path) -> None:
    tools = XtablesTools(str(tmp_path / "gone"), str(tmp_path / "gone"), Variant.NFT, (1, 8, 9))
    with pytest.raises(RestoreError, match="gone") as caught:
        SubprocessXtables(Family.IPV4, tools).save()
    assert caught.value.kind is FailureKind.MISSING


def test_programs_see_a_fixed_environment_and_all_of_the_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "de_DE.UTF-8")
    monkeypatch.setenv("XTABLES_LOCKFILE", "/run/other.lock")
    tools = _script(tmp_path, f"cat > {tmp_path}/input; env > {tmp_path}/env")
    text = b"x" * 1_000_000
    SubprocessXtables(Family.IPV4, tools).restore(text)
    assert (tmp_path / "input").read_bytes() == text
    environment = (tmp_path / "env").read_text().splitlines()
    assert "LC_ALL=C" in environment
    assert "XTABLES_LOCKFILE=/run/other.lock" in environment
    assert not any(line.startswith("LANG=") for line in environment)


def test_noise_is_removed_and_rules_are_kept() -> None:
    dump = (
        b"# Generated by x\n*nat\n:PREROUTING ACCEPT [12:345]\n:KUBE-A - [0:0]\n"
        b'-A KUBE-A -m comment --comment "# not [1:2] a comment" -j RETURN\nCOMMIT\n# Completed\n'
        b"# Generated by x\n*filter\n:INPUT DROP [1:2]\nCOMMIT\n# Completed\n"
    )
    assert without_counters(dump) == (
        b"*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-A - [0:0]\n"
        b'-A KUBE-A -m comment --comment "# not [1:2] a comment" -j RETURN\nCOMMIT\n'
        b"*filter\n:INPUT DROP [0:0]\nCOMMIT\n"
    )
    assert without_counters(b"# only a comment with a * in it\n") == b""


def test_save_takes_table_names_only(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a table name"):
        SubprocessXtables(Family.IPV4, _script(tmp_path, "")).save("nat; rm")


# Stamps ----------------------------------------------------------------------------------------------


@both_families
@fresh_network
def test_an_nft_stamp_advances_once_per_section_that_changes_something(family: Family) -> None:
    xtables = _xtables(Variant.NFT, family)
    before = generations.generation()

    def advance(text: bytes) -> int:
        start = generations.generation()
        with contextlib.suppress(RestoreError):
            xtables.restore(text)
        return generations.generation() - start

    assert advance(b"*nat\nCOMMIT\n") == 0
    assert advance(b"*nat\n:A - [0:0]\nCOMMIT\n") == 1
    assert advance(b"*nat\n:A - [0:0]\nCOMMIT\n") == 0
    assert advance(b"*filter\n:B - [0:0]\n-A B -j RETURN\nCOMMIT\n*nat\n-A A -j RETURN\nCOMMIT\n") == 2
    assert advance(b"*nat\n-A A -p udp -m tcp -j RETURN\nCOMMIT\n") == 0
    now = xtables.generation()
    assert generations.generation() == before + 3
    xtables.save()
    assert xtables.generation() == now


@both_families
@fresh_network
def test_a_legacy_stamp_shows_added_and_removed_rules_and_creates_no_table(family: Family) -> None:
    xtables = _xtables(Variant.LEGACY, family)
    empty = xtables.generation()
    assert empty is not None
    assert generations.legacy_tables(family) == ()
    xtables.restore(b"*nat\n:A - [0:0]\nCOMMIT\n")
    with_chain = xtables.generation()
    assert with_chain != empty
    xtables.restore(b"*nat\n-A A -j RETURN\nCOMMIT\n")
    with_rule = xtables.generation()
    assert with_rule not in (empty, with_chain)
    xtables.save()
    assert xtables.generation() == with_rule
    xtables.restore(b"*nat\n-D A -j RETURN\nCOMMIT\n")
    assert xtables.generation() == with_chain


# Detection -------------------------------------------------------------------------------------------


@fresh_network
def test_nft_is_chosen_when_iptables_is_unused_and_no_legacy_table_appears() -> None:
    _xtables(Variant.NFT)
    _xtables(Variant.LEGACY)
    assert find_tools(Family.IPV4).variant is Variant.NFT
    assert generations.legacy_tables(Family.IPV4) == ()
    assert generations.nft_chain_exists(Family.IPV4, "nat", "POSTROUTING")


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EPROTONOSUPPORT])
@fresh_network
def test_legacy_is_chosen_where_the_kernel_has_no_nftables(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    _xtables(Variant.LEGACY)
    monkeypatch.setattr(nfnetlink, "request", refuse)
    assert find_tools(Family.IPV4).variant is Variant.LEGACY


@both_variants
@pytest.mark.parametrize("hinted", list(Family))
@fresh_network
def test_the_kubelets_hint_in_either_family_decides(variant: Variant, hinted: Family) -> None:
    other = Variant.NFT if variant is Variant.LEGACY else Variant.LEGACY
    _xtables(other).restore(b"*filter\n" + b"-A INPUT -j RETURN\n" * 9 + b"COMMIT\n")
    _xtables(variant, hinted).restore(HINT)
    for family in Family:
        assert find_tools(family).variant is variant


@fresh_network
def test_without_a_hint_the_larger_rule_set_decides() -> None:
    _xtables(Variant.LEGACY).restore(b"*filter\n" + b"-A INPUT -j RETURN\n" * 3 + b"COMMIT\n")
    _xtables(Variant.NFT).restore(b"*filter\n" + b"-A INPUT -j RETURN\n" * 2 + b"COMMIT\n")
    assert find_tools(Family.IPV4).variant is Variant.LEGACY
    _xtables(Variant.NFT).restore(b"*filter\n-A INPUT -j RETURN\nCOMMIT\n")
    assert find_tools(Family.IPV4).variant is Variant.NFT


def _install(directory: Path, stem: str, version: str) -> None:
    for program in (f"{stem}-restore", f"{stem}-save"):
        path = directory / program
        path.write_text(f"#!/bin/sh\necho '{program} {version}'\n")
        path.chmod(0o755)


def _stall(directory: Path, program: str, script: str = "exec sleep 600") -> None:
    """Let a program say its version and nothing else, or, with `script`, do what that does."""
    path = directory / program
    said = path.read_text().replace("#!/bin/sh\n", "")
    version = f'[ "$1" != --version ] || {{ {said}exit; }}\n'
    path.write_text(f"#!/bin/sh\n{version}{script}\n")


def test_a_program_without_an_end_is_not_taken_for_one_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "_SECONDS", 0.5)
    for stem, version in (("iptables-nft", "v1.8.9 (nf_tables)"), ("iptables-legacy", "v1.8.9 (legacy)")):
        _install(tmp_path, stem, version)
    (tmp_path / "iptables-nft-restore").write_text("#!/bin/sh\nexec sleep 600\n")
    with pytest.raises(XtablesStalled, match="iptables-nft-restore did not finish"):
        find_tools(Family.IPV4, probe=False, search_path=str(tmp_path))


@pytest.mark.parametrize(
    ("script", "told"),
    [("exec sleep 600", "did not finish"), ("kill -9 $$", "killed by signal 9")],
    ids=["stalled", "killed"],
)
@fresh_network
def test_a_trial_without_an_end_is_no_refusal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, told: str
) -> None:
    monkeypatch.setattr(detect, "_SECONDS", 0.5)
    _install(tmp_path, "iptables-nft", "v1.8.9 (nf_tables)")
    _stall(tmp_path, "iptables-nft-restore", script)
    with pytest.raises(XtablesStalled, match=told):
        find_tools(Family.IPV4, Variant.NFT, search_path=str(tmp_path))


def test_a_forced_variant_that_is_not_installed_is_named(tmp_path: Path) -> None:
    _install(tmp_path, "iptables", "v1.8.9 (nf_tables)")
    with pytest.raises(XtablesUnavailable, match="iptables-legacy-restore"):
        find_tools(Family.IPV4, Variant.LEGACY, search_path=str(tmp_path))
    with pytest.raises(XtablesUnavailable, match="neither"):
        find_tools(Family.IPV4, search_path=str(tmp_path / "nothing"))


@pytest.mark.parametrize(
    ("version", "variant"),
    [("v1.8.9 (nf_tables)", Variant.NFT), ("v1.8.9 (legacy)", Variant.LEGACY), ("v1.6.1", Variant.LEGACY)],
)
def test_plain_programs_tell_their_variant(tmp_path: Path, version: str, variant: Variant) -> None:
    _install(tmp_path, "iptables", version)
    tools = find_tools(Family.IPV4, probe=False, search_path=str(tmp_path))
    assert tools.variant is variant
    assert tools.restore == str(tmp_path / "iptables-restore")
    assert SubprocessXtables(Family.IPV4, tools).random_fully is (tools.version >= (1, 6, 2))


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ("iptables-restore v1.8.11 (nf_tables)\n", (Variant.NFT, (1, 8, 11))),
        ("iptables-restore v1.4.21", (Variant.LEGACY, (1, 4, 21))),
        ("ip6tables-restore v1.8 (legacy)", (Variant.LEGACY, (1, 8, 0))),
    ],
)
def test_versions_are_read(output: str, expected: tuple[Variant, tuple[int, int, int]]) -> None:
    assert program_version(output) == expected


@fresh_network
def test_disabled_ipv6_is_unavailable() -> None:
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    with pytest.raises(XtablesUnavailable, match="disable_ipv6"):
        find_tools(Family.IPV6)


# Dumps that are not whole ----------------------------------------------------------------------------


def _behind(directory: Path, save: SubprocessXtables, filter_: str) -> SubprocessXtables:
    """The same tables, with a save that prints what a shell command makes of its dump."""
    path = directory / "save"
    path.write_text(f'#!/bin/sh\n{save.tools.save} "$@" | {filter_}\n')
    path.chmod(0o755)
    return SubprocessXtables(save.family, dataclasses.replace(save.tools, save=str(path)))


CUTS = {
    "nothing": "cat >/dev/null",
    "without the end": "sed '/COMMIT/,$d'",
    "without the end of the last": "sed '$d' | sed '$d'",
    "in a line": "head -c 60",
    "one table": "sed -n '/^.filter/,/^COMMIT/p'",
    "a comment": "sed 's/.*/# not so/'",
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
@both_families
@fresh_network
def test_a_dump_that_was_cut_off_is_no_empty_table(tmp_path: Path, family: Family, cut: str) -> None:
    text = b"*filter\n-A INPUT -j ACCEPT\nCOMMIT\n*nat\n:KUBE-A - [0:0]\n-A KUBE-A -j RETURN\nCOMMIT\n"
    legacy, nft = _xtables(Variant.LEGACY, family), _xtables(Variant.NFT, family)
    for each in (legacy, nft):
        each.restore(text)
    with pytest.raises(RestoreError, match="did not print all of table"):
        _behind(tmp_path, legacy, cut).save()
    read = _behind(tmp_path, nft, cut).save()
    assert b"\n:KUBE-A - [0:0]\n-A KUBE-A -j RETURN\nCOMMIT\n" in read
    assert read.count(b"COMMIT\n") == 2


@fresh_network
def test_a_sync_that_reads_less_than_there_is_writes_nothing(tmp_path: Path) -> None:
    xtables = _xtables(Variant.LEGACY)
    layout = StandardLayout(IptablesConfig(Family.IPV4))
    IptablesBackend(layout, xtables, ForeignWrites(xtables.generation)).sync()
    before = xtables.save()
    cut = _behind(tmp_path, xtables, CUTS["one table"])
    report = IptablesBackend(layout, cut, ForeignWrites(cut.generation)).sync()
    assert report.error is not None
    assert "did not print all of table" in report.error
    assert xtables.save() == before
    with pytest.raises(RestoreError, match="did not print all of table"):
        cleanup(cut)
    assert xtables.save() == before


# The variant that the kernel can do ------------------------------------------------------------------


def _refusing(directory: Path, *refused: Variant) -> str:
    """A search path with both variants, of which these find no nat in the kernel."""
    for stem in ("iptables", "ip6tables"):
        for variant in Variant:
            for kind in ("restore", "save"):
                name = f"{stem}-{variant}-{kind}"
                real = shutil.which(name, path="/usr/sbin:/sbin")
                if real is None:
                    pytest.skip(f"{name} is not installed")
                path = directory / name
                path.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
                path.chmod(0o755)
                if variant in refused and kind == "restore":
                    said = "line 2: TABLE_ADD failed (Operation not supported): table nat"
                    _refuse(path, real, said)
    return str(directory)


def _refuse(path: Path, real: str, said: str) -> None:
    path.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exec {real} "$@"\ncat >/dev/null\necho "{said}" >&2\nexit 4\n'
    )


@pytest.mark.parametrize("probe", [True, False])
@both_families
@fresh_network
def test_without_rules_the_variant_that_passes_the_trial_is_taken(
    tmp_path: Path, family: Family, probe: bool
) -> None:
    path = _refusing(tmp_path, Variant.NFT)
    tools = find_tools(family, probe=probe, search_path=path)
    assert tools.variant is Variant.LEGACY
    assert "TABLE_ADD failed (Operation not supported)" in tools.instead_of
    assert f"{family}'s nat table" in tools.instead_of
    assert ("nat" in generations.legacy_tables(family)) == probe


@fresh_network
def test_where_both_pass_nft_is_taken_and_nothing_is_said(tmp_path: Path) -> None:
    found = find_tools(Family.IPV4, search_path=_refusing(tmp_path))
    assert (found.variant, found.instead_of) == (Variant.NFT, "")


@pytest.mark.parametrize("rule", [HINT, b"*filter\n-A INPUT -j ACCEPT\nCOMMIT\n"], ids=["kubelet", "rules"])
@fresh_network
def test_rules_in_the_variant_that_fails_the_trial_are_named(tmp_path: Path, rule: bytes) -> None:
    _xtables(Variant.NFT).restore(rule)
    with pytest.raises(XtablesUnavailable) as caught:
        find_tools(Family.IPV4, search_path=_refusing(tmp_path, Variant.NFT))
    reason = caught.value.reason
    assert "TABLE_ADD failed (Operation not supported)" in reason
    assert "this node's rules are of variant nft (" in reason
    assert "--iptables-variant legacy" in reason
    assert generations.legacy_tables(Family.IPV4) == ()


@fresh_network
def test_where_no_variant_passes_both_reasons_are_given(tmp_path: Path) -> None:
    with pytest.raises(XtablesUnavailable, match=r"nft-restore: line 2.*legacy-restore: line 2"):
        find_tools(Family.IPV4, search_path=_refusing(tmp_path, *Variant))


@fresh_network
def test_a_trial_that_did_not_end_chooses_no_other_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "_SECONDS", 0.5)
    path = _refusing(tmp_path)
    (tmp_path / "iptables-nft-restore").write_text(
        '#!/bin/sh\n[ "$1" = --version ] && exec /usr/sbin/iptables-nft-restore "$@"\nexec sleep 600\n'
    )
    with pytest.raises(XtablesStalled, match="did not finish"):
        find_tools(Family.IPV4, search_path=path)


@fresh_network
def test_rules_beside_a_native_rule_speak_for_their_variant() -> None:
    _xtables(Variant.LEGACY).restore(b"*filter\n" + b"-A INPUT -j RETURN\n" * 2 + b"COMMIT\n")
    nft = _xtables(Variant.NFT)
    nft.restore(b"*filter\n" + b"-A INPUT -j RETURN\n" * 3 + b"COMMIT\n")
    script = "insert rule ip filter INPUT ct state established accept"
    subprocess.run(["nft", script], check=True)
    assert find_tools(Family.IPV4).variant is Variant.NFT


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EAGAIN])
def test_a_program_that_cannot_be_started_now_makes_no_family_unusable(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    if shutil.which("iptables-nft-restore") is None:
        pytest.skip("iptables-nft-restore is not installed")
    monkeypatch.setattr(subprocess, "Popen", fail)
    with pytest.raises(XtablesStalled, match=os.strerror(number)):
        find_tools(Family.IPV4, probe=False)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOBUFS, errno.ENOMEM])
@fresh_network
def test_a_trial_that_could_not_be_made_chooses_no_other_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object) -> bool:
        raise OSError(number, os.strerror(number))

    path = _refusing(tmp_path)
    monkeypatch.setattr(generations, "nft_chain_exists", fail)
    with pytest.raises(XtablesStalled, match=os.strerror(number)):
        find_tools(Family.IPV4, search_path=path)
    assert generations.legacy_tables(Family.IPV4) == ()
