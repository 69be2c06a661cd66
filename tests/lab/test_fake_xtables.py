"""The in-memory iptables: faults on order, and the same verdicts and dumps as both real variants."""

from __future__ import annotations

import random

import pytest

from kproxy.addresses import Family
from kproxy.kernel import generations
from kproxy.kernel.xtables.detect import find_tools
from kproxy.kernel.xtables.programs import SubprocessXtables
from kproxy.kernel.xtables.types import FailureKind, RestoreError, Variant, Xtables, XtablesUnavailable
from tests.kernel.namespace import fresh_network
from tests.support.fake_xtables import FakeXtables

ONE = b"*nat\n:ONE - [0:0]\n-A ONE -j RETURN\nCOMMIT\n"
both_variants = pytest.mark.parametrize("variant", list(Variant))


def _kind(xtables: Xtables, text: bytes) -> FailureKind | None:
    try:
        xtables.restore(text)
    except RestoreError as error:
        return error.kind
    return None


def test_it_is_an_xtables() -> None:
    fake: Xtables = FakeXtables(Family.IPV6, Variant.LEGACY, random_fully=False)
    assert (fake.family, fake.variant, fake.random_fully) == (Family.IPV6, Variant.LEGACY, False)


def test_a_dump_can_be_restored_to_the_same_dump() -> None:
    fake = FakeXtables()
    fake.restore(ONE + b'*filter\n:X - [0:0]\n-A INPUT -m comment --comment "a -j b" -j X\nCOMMIT\n')
    copy = FakeXtables()
    copy.restore(fake.save())
    assert copy.save() == fake.save()
    assert fake.save() == (
        b"*filter\n:INPUT ACCEPT [0:0]\n:FORWARD ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n:X - [0:0]\n"
        b'-A INPUT -m comment --comment "a -j b" -j X\nCOMMIT\n'
        b"*nat\n:PREROUTING ACCEPT [0:0]\n:INPUT ACCEPT [0:0]\n:OUTPUT ACCEPT [0:0]\n"
        b":POSTROUTING ACCEPT [0:0]\n"
        b":ONE - [0:0]\n-A ONE -j RETURN\nCOMMIT\n"
    )


def test_the_stamp_moves_only_with_the_rules() -> None:
    fake = FakeXtables()
    fake.restore(ONE)
    stamp = fake.generation()
    fake.restore(b"*nat\nCOMMIT\n")
    assert _kind(fake, b"*nat\n-A ONE -j NOWHERE\nCOMMIT\n") is FailureKind.RULE
    fake.save()
    assert fake.generation() == stamp
    fake.restore(ONE)  # flushed and written anew: the kernel counts that as a change
    assert fake.generation() != stamp
    stamp = fake.generation()
    fake.edit("*nat\n-D ONE 1\nCOMMIT\n")
    assert fake.generation() != stamp
    stamp = fake.generation()
    fake.flush_table("nat")
    assert fake.generation() != stamp
    assert fake.save() == b""


def test_ordered_failures_change_nothing_and_end() -> None:
    fake = FakeXtables()
    fake.lock_for(2)
    fake.fail_next(FailureKind.MISSING, line=7)
    kinds = [_kind(fake, ONE) for _ in range(4)]
    assert kinds == [FailureKind.LOCKED, FailureKind.LOCKED, FailureKind.MISSING, None]
    assert fake.restores == [ONE] * 4
    assert fake.chains("nat")["ONE"] == ["-A ONE -j RETURN"]


@pytest.mark.parametrize("tables", [0, 1, 2])
def test_a_killed_restore_keeps_the_tables_it_committed(tables: int) -> None:
    fake = FakeXtables()
    fake.kill_after_tables(tables)
    two = ONE + b"*filter\n:TWO - [0:0]\nCOMMIT\n"
    assert _kind(fake, two) is FailureKind.INTERRUPTED
    assert ("ONE" in fake.chains("nat"), "TWO" in fake.chains("filter")) == (tables > 0, tables > 1)
    assert _kind(fake, two) is None


def test_a_refused_rule_takes_its_section_with_it_and_foreign_edits_are_not_refused() -> None:
    fake = FakeXtables()
    fake.refuse_rules_matching(r"-m recent\b")
    recent = b"*nat\n:R - [0:0]\n-A R -m recent --set\nCOMMIT\n"
    with pytest.raises(RestoreError) as caught:
        fake.restore(ONE + recent)
    assert (caught.value.kind, caught.value.line) == (FailureKind.RULE, 7)
    assert "R" not in fake.chains("nat")
    fake.edit(recent.decode())
    assert fake.chains("nat")["R"] == ["-A R -m recent --set"]
    fake.accept_all_rules()
    assert _kind(fake, recent) is None


def test_a_rule_is_deleted_by_another_spelling() -> None:
    fake = FakeXtables()
    fake.restore(
        b'*nat\n:A - [0:0]\n-A A -s 10.0.0.1/32 -m comment --comment "x" -j MARK --set-xmark 0x1/0x1\n'
        b"COMMIT\n"
    )
    fake.restore(b"*nat\n-D A -m comment --comment x -s 10.0.0.1 -j MARK --or-mark 1\nCOMMIT\n")
    assert fake.chains("nat")["A"] == []


def _real(variant: Variant) -> SubprocessXtables:
    try:
        return SubprocessXtables(Family.IPV4, find_tools(Family.IPV4, variant, probe=False))
    except XtablesUnavailable as error:
        pytest.skip(error.reason)


CHAINS = ("A", "B", "C", "D", "OUTPUT", "MISSING")
SPECS = (
    "-j RETURN",
    "-s 10.0.0.1/32 -j RETURN",
    "-s 10.0.0.1/32",
    '-m comment --comment "to -j B" -j {}',
    "-j {}",
    "-j {}",
    "-g {}",
    "-d 10.0.0.2/32 -p tcp -m tcp --dport 80 -j {}",
    "-j MARK --set-xmark 0x4000/0x4000",
    "-j DROP",
)


def _random_input(random_: random.Random) -> bytes:
    lines: list[str] = []
    for _ in range(random_.choice((1, 1, 1, 2))):
        lines.append("*" + random_.choice(("nat", "nat", "filter")))
        emptied: set[str] = set()
        for _ in range(random_.choice((0, 1, 1, 2, 3, 5))):
            line = _random_line(random_)
            if line[:2] in ("-I", "-D") and line.split()[1] in emptied:
                continue  # iptables-nft counts positions in a chain as it was before the restore emptied it
            if line[:2] in ("-F", "-X", "-N"):
                emptied.add(line.split()[1])
            if line[0] == ":":
                emptied.add(line[1:].split()[0])
            lines.append(line)
        lines.append("COMMIT")
    return "\n".join([*lines, ""]).encode()


def _random_line(random_: random.Random) -> str:
    chain = random_.choice(CHAINS[:-1] if random_.random() < 0.95 else CHAINS)
    spec = random_.choice(SPECS[:-1] if random_.random() < 0.9 else SPECS).format(random_.choice(CHAINS[:4]))
    number = random_.choice(("1", "1", "2", "3"))
    return random_.choice((
        f":{chain} - [0:0]" if chain != "OUTPUT" else ":OUTPUT ACCEPT [0:0]",
        f":{random_.choice(CHAINS[:4])} - [0:0]",
        f"-N {chain}",
        f"-F {chain}",
        f"-X {random_.choice(CHAINS[:4])}",
        f"-A {chain} {spec}",
        f"-A {chain} {spec}",
        f"-A {chain} {spec}",
        f"-I {chain} {spec}",
        f"-I {chain} {number} {spec}",
        f"-D {chain} {number}",
        f"-D {chain} {spec}",
    ))  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@both_variants
@fresh_network
def test_it_accepts_refuses_and_prints_what_the_real_programs_do(variant: Variant, seed: int) -> None:
    real, fake = _real(variant), FakeXtables(Family.IPV4, variant)
    declare = b"".join(b":%b - [0:0]\n" % name.encode() for name in CHAINS[:4])
    for table in (b"nat", b"filter"):
        for xtables in (real, fake):
            xtables.restore(b"*%b\n%bCOMMIT\n" % (table, declare))
    random_ = random.Random(seed)
    accepted = 0
    for _ in range(100):
        text = _random_input(random_)
        before = (generations.generation(), fake.generation())
        verdict = _kind(real, text)
        assert _kind(fake, text) == verdict, text.decode()
        accepted += verdict is None
        assert fake.save() == real.save(), text.decode()
        if variant is Variant.NFT:
            assert (generations.generation() == before[0]) == (fake.generation() == before[1]), text.decode()
    assert accepted > 10
