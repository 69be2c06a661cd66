"""Sets of address ranges have exactly the addresses of their blocks without exceptions, in few CIDRs."""

import ipaddress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from kproxy.addresses import Family, cidr_interval
from kproxy.plan.policy.compile import merge
from kproxy.plan.policy.ranges import Block, cidrs_of, count_ranges, is_everything, most_ranges
from tests.plan.policy.objects import examples

BASES = {Family.IPV4: "10.0.0.0", Family.IPV6: "fd00::"}
"""The tests use the last five bits."""
BITS = 5


def made(family: Family, cidr: str, *excepts: str) -> Block:
    return Block(family, cidr, excepts, cidr_interval(cidr), tuple(map(cidr_interval, excepts)))


@st.composite
def _blocks(draw: st.DrawFn, family: Family) -> Block:
    base = ipaddress.ip_network(f"{BASES[family]}/{family.host_bits - BITS}")
    within = draw(st.sampled_from([base, *(each for n in (1, 2, 3) for each in base.subnets(n))]))
    smaller = [each for n in range(1, family.host_bits - within.prefixlen + 1) for each in within.subnets(n)]
    holes = draw(st.lists(st.sampled_from(smaller), max_size=4, unique=True))
    return made(family, str(within), *sorted(map(str, holes)))


@st.composite
def _families(draw: st.DrawFn) -> tuple[Family, list[Block]]:
    family = draw(st.sampled_from(Family))
    return family, draw(st.lists(_blocks(family), max_size=4))


@examples(150)
@given(_families())
def test_ranges_are_the_union_of_blocks_without_their_own_exceptions(
    given: tuple[Family, list[Block]],
) -> None:
    family, blocks = given
    cidrs = cidrs_of(blocks, family)
    networks = [ipaddress.ip_network(each) for each in cidrs]
    first = int(ipaddress.ip_address(BASES[family]))
    address = ipaddress.IPv4Address if family is Family.IPV4 else ipaddress.IPv6Address
    for number in range(first - 1, first + (1 << BITS) + 1):
        expected = any(
            address(number) in ipaddress.ip_network(each.cidr)
            and not any(address(number) in ipaddress.ip_network(hole) for hole in each.excepts)
            for each in blocks
        )
        assert any(address(number) in each for each in networks) is expected
        assert any(each.contains(number) for each in blocks) is expected
    assert list(cidrs) == [str(each) for each in networks]
    assert all(int(a.broadcast_address) < int(b.network_address) for a, b in pairwise(networks))
    assert len(list(ipaddress.collapse_addresses(networks))) == len(networks)  # type: ignore[type-var]
    assert count_ranges([blocks], family, 1000) == len(cidrs) <= most_ranges(blocks, family)


def test_blocks_of_other_families_count_for_nothing() -> None:
    four = made(Family.IPV4, "10.0.0.0/8")
    assert cidrs_of([four], Family.IPV6) == ()
    assert count_ranges([[four]], Family.IPV6, 9) == most_ranges([four], Family.IPV6) == 0


def test_counting_ends_beyond_the_limit() -> None:
    holes = [f"10.0.{n}.1/32" for n in range(200)]
    lists = [[made(Family.IPV4, "10.0.0.0/8", *holes)]] * 3
    assert count_ranges(lists, Family.IPV4, 100) == 101


def test_all_addresses_are_known_as_such() -> None:
    for family, all_of_it, most in (
        (Family.IPV4, "0.0.0.0/0", "0.0.0.0/1"),
        (Family.IPV6, "::/0", "8000::/1"),
    ):
        hole = made(family, all_of_it, most)
        assert is_everything(cidrs_of([made(family, all_of_it)], family))
        assert is_everything(cidrs_of([hole, made(family, most)], family))
        assert not is_everything(cidrs_of([hole], family))


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 5)), max_size=8))
def test_merged_ports_are_the_same_ports(found: list[tuple[int, int]]) -> None:
    ranges = [(first, first + more) for first, more in found]
    merged = merge(ranges)
    ports = {port for first, last in ranges for port in range(first, last + 1)}
    assert {port for first, last in merged for port in range(first, last + 1)} == ports
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(merged))
