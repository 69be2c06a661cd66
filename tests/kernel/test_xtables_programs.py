"""SubprocessXtables against the installed programs: each test in its own network namespace."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from pathlib import Path

import pytest

from kproxy.addresses import Family
from kproxy.kernel.xtables import detect, nfnetlink, stamps
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
def test_refused_rules_are_told_from_other_failures_and_located(variant: Variant, text: bytes) -> None:
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
    with pytest.raises(RestoreError, match="gone") as caught:
        xtables.save()
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
    before = stamps.generation()

    def advance(text: bytes) -> int:
        start = stamps.generation()
        with contextlib.suppress(RestoreError):
            xtables.restore(text)
        return stamps.generation() - start

    assert advance(b"*nat\nCOMMIT\n") == 0
    assert advance(b"*nat\n:A - [0:0]\nCOMMIT\n") == 1
    assert advance(b"*nat\n:A - [0:0]\nCOMMIT\n") == 0
    assert advance(b"*filter\n:B - [0:0]\n-A B -j RETURN\nCOMMIT\n*nat\n-A A -j RETURN\nCOMMIT\n") == 2
    assert advance(b"*nat\n-A A -p udp -m tcp -j RETURN\nCOMMIT\n") == 0
    now = xtables.stamp()
    assert stamps.generation() == before + 3
    xtables.save()
    assert xtables.stamp() == now


@both_families
@fresh_network
def test_a_legacy_stamp_shows_added_and_removed_rules_and_creates_no_table(family: Family) -> None:
    xtables = _xtables(Variant.LEGACY, family)
    empty = xtables.stamp()
    assert empty is not None
    assert stamps.legacy_tables(family) == ()
    xtables.restore(b"*nat\n:A - [0:0]\nCOMMIT\n")
    with_chain = xtables.stamp()
    assert with_chain != empty
    xtables.restore(b"*nat\n-A A -j RETURN\nCOMMIT\n")
    with_rule = xtables.stamp()
    assert with_rule not in (empty, with_chain)
    xtables.save()
    assert xtables.stamp() == with_rule
    xtables.restore(b"*nat\n-D A -j RETURN\nCOMMIT\n")
    assert xtables.stamp() == with_chain


# Detection -------------------------------------------------------------------------------------------


@fresh_network
def test_nft_is_chosen_when_nobody_uses_iptables_and_no_legacy_table_appears() -> None:
    _xtables(Variant.NFT)
    _xtables(Variant.LEGACY)
    assert find_tools(Family.IPV4).variant is Variant.NFT
    assert stamps.legacy_tables(Family.IPV4) == ()
    assert stamps.nft_chain_exists(Family.IPV4, "nat", "POSTROUTING")


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
