"""What we read of a table's elements is what nft says of them, and what only nft knows is left to it."""

from __future__ import annotations

import ipaddress
import json
import threading
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.backends.nftables import names
from kproxy.backends.nftables.affinity import Target, sticky
from kproxy.backends.nftables.chains import Chain, OwnList, firewall, own, pick
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.drift import is_whole
from kproxy.backends.nftables.listing import contents_of
from kproxy.backends.nftables.render import canonical
from kproxy.backends.nftables.script import Script
from kproxy.kernel.nft import dump
from kproxy.kernel.nft.commands import AddChain, AddTable, Transaction
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.nft.types import NftError, NftFailure, Reading
from tests.backends.strategies import SETTINGS
from tests.kernel.namespace import fresh_network
from tests.kernel.nft_oracle import listing, nft, read_chains, read_containers, read_elements, write
from tests.suite.matrix import examples

NUMBERED, PART = 3, 7
HASHED = "A" * 16
VERDICTS = ("drop", "accept", "return", "continue", "goto all-3-7", "jump here-3-7", f"goto {'n' * 127}")


def _addresses(family: Family) -> st.SearchStrategy[str]:
    if family is Family.IPV4:
        edges, drawn = ["0.0.0.0", "255.255.255.255"], st.ip_addresses(v=4)
    else:
        edges, drawn = ["::", "::1", "::ffff:1.2.3.4", "::1.2.3.4", "2001:db8::"], st.ip_addresses(v=6)
    return st.one_of(st.sampled_from(edges), drawn.map(str).map(canonical))


def _cidr(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> str:
    text = canonical(str(network.network_address))
    return f"{text}/{network.prefixlen}" if network.prefixlen < network.max_prefixlen else text


def chains_of(family: Family) -> dict[str, Chain]:
    """Chains that read every kind of map and set that exists only on demand."""
    target = Target("10.0.0.1" if family is Family.IPV4 else "fd00::1", 80, 1, 1)
    return {
        **dict(
            [pick(family, NUMBERED, PART), pick(family, NUMBERED, PART, local=True), firewall(family, HASHED)]
        ),
        "own": own(family, 6, OwnList((1, 2), 5, PART), [False]),
        "sticky": sticky(family, HASHED, 6, [target], 60),
        "n" * 127: (),
    }


@st.composite
def _ranges(draw: st.DrawFn, family: Family) -> str:
    network = ipaddress.ip_network(draw(_addresses(family)))
    length = draw(st.integers(0, network.max_prefixlen))
    text = canonical(str(network.supernet(new_prefix=length).network_address))
    return f"{text}/{length}" if length < network.max_prefixlen else text


@st.composite
def tables(draw: st.DrawFn) -> tuple[Family, dict[str, dict[str, str]]]:
    """A family, and elements of every kind of map and set that this mode has."""
    family = draw(st.sampled_from(list(Family)))
    ips = _addresses(family)
    port = st.integers(0, 65535).map(str)

    def key(*fields: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        return st.tuples(*fields).map(" . ".join)

    asked = key(ips, st.integers(0, 255).map(str), port)
    verdict = st.sampled_from(VERDICTS)
    endpoint = key(ips, port)
    number = st.integers(0, 2**32 - 1).map(str)
    nothing = st.just("")
    kinds = {
        names.SERVICES: (asked, verdict),
        names.ADMITTED: (asked, verdict),
        names.REFUSALS: (asked, st.sampled_from(["drop", "goto refuse"])),
        names.ENDPOINT_0: (asked, endpoint),
        names.LOCAL_ENDPOINT_0: (asked, endpoint),
        names.numbered(NUMBERED, PART): (key(asked, number), endpoint),
        names.numbered(NUMBERED, PART, local=True): (key(asked, number), endpoint),
        names.slots(PART): (key(number, number, number), endpoint),
        names.HAIRPIN: (key(ips, asked), nothing),
        names.CLUSTER_IPS: (ips, nothing),
    }
    drawn = {name: draw(st.dictionaries(*kind, max_size=5)) for name, kind in kinds.items()}
    # Ranges must not overlap, and nft prints a range of several prefixes otherwise.
    networks = ipaddress.collapse_addresses(  # type: ignore[type-var]
        map(ipaddress.ip_network, draw(st.lists(_ranges(family), max_size=5)))
    )
    drawn[names.ranges(HASHED)] = dict.fromkeys(map(_cidr, networks), "")
    return family, drawn


def _write(family: Family, elements: dict[str, dict[str, str]]) -> None:
    config = NftablesConfig(family)
    script = Script(config)
    script.remove_table()
    script.declare(config)
    script.base(config)
    script.chains(chains_of(family))
    for name, content in elements.items():
        script.add_elements(name, content)
    write(str(script))


def _text(value: Any) -> str:
    """A key or value of nft's JSON in the words of its plain listing."""
    match value:
        case {"concat": parts}:
            return " . ".join(map(_text, parts))
        case {"elem": {"val": inner}}:
            return _text(inner)
        case {"prefix": {"addr": address, "len": length}}:
            return f"{address}/{length}"
        case {"goto": {"target": chain}} | {"jump": {"target": chain}}:
            return f"{next(iter(value))} {chain}"
        case {"drop": None} | {"accept": None} | {"return": None} | {"continue": None}:
            return str(next(iter(value)))
        case str() | int():
            return str(value)
    raise AssertionError(value)


def _by_json(family: Family) -> dict[str, dict[str, str]]:
    kind = NftablesConfig(family).ip
    listed = json.loads(nft("-j", "-nn", "list", "table", kind, names.TABLE))["nftables"]
    found = {}
    for each in listed:
        if "map" in each:
            found[each["map"]["name"]] = {_text(k): _text(v) for k, v in each["map"].get("elem", ())}
        elif "set" in each:
            found[each["set"]["name"]] = {_text(element): "" for element in each["set"].get("elem", ())}
    return {name: elements for name, elements in found.items() if elements}


@fresh_network
def test_any_table_is_read_as_nft_lists_it() -> None:
    kernel = NetlinkNft()

    @given(tables())
    @settings(SETTINGS, max_examples=examples(60))
    def compare(drawn: tuple[Family, dict[str, dict[str, str]]]) -> None:
        family, elements = drawn
        _write(family, elements)
        reading, listed = kernel.reading(family, names.TABLE), listing(family)
        assert reading is not None
        assert reading.elements is not None
        found = contents_of(reading)
        assert found == {name: content for name, content in elements.items() if content}
        assert found == read_elements(listed)
        assert found == _by_json(family)
        assert reading.containers == read_containers(listed)
        assert {name: len(rules) for name, rules in reading.chains.items()} == {
            name: len(rules) for name, rules in read_chains(listed).items()
        }

    compare()


@pytest.mark.parametrize("family", list(Family))
def test_many_elements_come_in_many_messages_and_none_is_lost(family: Family) -> None:
    _many(family)


@fresh_network
def _many(family: Family) -> None:
    first = ipaddress.ip_address("10.0.0.0" if family is Family.IPV4 else "2001:db8::")
    asked = [f"{first + number} . 6 . 80" for number in range(3000)]
    elements = {
        names.SERVICES: dict.fromkeys(asked, "goto all-3-7"),
        names.numbered(NUMBERED, PART): {
            f"{key} . {number}": f"{key.split()[0]} . 8080" for key in asked for number in (1, 2)
        },
        names.ranges(HASHED): {f"{first + 4 * number}": "" for number in range(3000)},
    }
    _write(family, elements)
    reading = dump.reading(family, names.TABLE, elements=True)
    assert reading is not None
    found = reading.elements or {}
    assert {name: content for name, content in found.items() if content} == elements


FOREIGN = [
    pytest.param("set protocols { type inet_proto; flags interval; elements = { 6-17 } }", id="interval"),
    pytest.param("set names { type ifname; elements = { lo } }", id="type"),
    pytest.param("set rest { type ipv4_addr; flags constant; elements = { 1.2.3.4 } }", id="flags"),
    pytest.param("map marks { type inet_service : mark; elements = { 80 : 0x1 } }", id="data"),
    pytest.param(
        "set quotas { type ipv4_addr; quota over 1 bytes; elements = { 1.2.3.4 } }", id="expression"
    ),
    pytest.param(
        "set spans { type ipv4_addr . inet_proto; flags interval; elements = { 1.2.3.4 . 6-17 } }",
        id="range of protocols",
    ),
]


@pytest.mark.parametrize("declared", FOREIGN)
def test_what_is_not_understood_is_named_and_the_rest_is_read(declared: str) -> None:
    _foreign(declared)


@fresh_network
def _foreign(declared: str) -> None:
    _write(Family.IPV4, {names.CLUSTER_IPS: {"10.0.0.1": ""}})
    write(f"table ip {names.TABLE} {{ {declared}; }}\n")
    name = declared.split()[1]
    reading = NetlinkNft().reading(Family.IPV4, names.TABLE)
    assert reading is not None
    assert list(reading.unreadable) == [name]
    assert name in reading.unreadable[name]
    assert contents_of(reading) == {names.CLUSTER_IPS: {"10.0.0.1": ""}}
    assert is_whole(Family.IPV4, reading)


@fresh_network
def test_elements_with_comments_of_others_are_read_by_their_keys() -> None:
    _write(Family.IPV6, {names.CLUSTER_IPS: {"fd00::1": ""}, names.SERVICES: {"fd00::1 . 6 . 80": "drop"}})
    table = f"ip6 {names.TABLE}"
    write(
        f'add element {table} {names.CLUSTER_IPS} {{ fd00::2 comment "a : b" }}\n'
        f'add element {table} {names.SERVICES} {{ fd00::2 . 6 . 80 comment "x" : goto all-3-7 }}\n'
        f'add element {table} {names.ENDPOINT_0} {{ fd00::2 . 6 . 80 comment "x" : fd01::1 . 8 }}\n'
        f'add element {table} {names.ranges(HASHED)} {{ fd03::/16 comment "y" }}\n'
    )
    reading = NetlinkNft().reading(Family.IPV6, names.TABLE)
    assert reading is not None
    assert contents_of(reading) == {
        names.CLUSTER_IPS: {"fd00::1": "", "fd00::2": ""},
        names.SERVICES: {"fd00::1 . 6 . 80": "drop", "fd00::2 . 6 . 80": "goto all-3-7"},
        names.ENDPOINT_0: {"fd00::2 . 6 . 80": "fd01::1 . 8"},
        names.ranges(HASHED): {"fd03::/16": ""},
    }


@fresh_network
def test_what_packets_fill_is_not_read() -> None:
    _write(Family.IPV4, {})
    write(f"add element ip {names.TABLE} {names.affinity(HASHED)} {{ 10.1.0.1 . 7 timeout 1h }}\n")
    reading = dump.reading(Family.IPV4, names.TABLE, elements=True)
    assert reading is not None
    assert reading.elements is not None
    assert reading.containers == set(
        map(names.object_of, [names.affinity(HASHED), names.ranges(HASHED), names.slots(PART)])
    ) | {what for what in names.declarations(Family.IPV4) if what.split()[1] in reading.elements} | {
        f"map {names.numbered(NUMBERED, PART, local=local)}" for local in (False, True)
    }


@fresh_network
def test_counters_are_read_as_nft_lists_them() -> None:
    kernel = NetlinkNft()
    declaration = names.declarations(Family.IPV4)[f"map {names.SERVICES}"]
    elements = (
        "10.0.0.1 . 6 . 80 counter packets 7 bytes 420 : drop, "
        f"10.0.0.2 . 17 . 53 counter packets {2**40} bytes {2**63} : accept, 10.0.0.3 . 6 . 80 : drop"
    )
    counts = {
        "10.0.0.1 . 6 . 80": (7, 420),
        "10.0.0.2 . 17 . 53": (2**40, 2**63),
        "10.0.0.3 . 6 . 80": (0, 0),
    }
    write(f"table ip kproxy {{ map services {{ {declaration} elements = {{ {elements} }}; }}; }}\n")
    assert dump.counts(Family.IPV4, "kproxy", "services") == counts
    assert kernel.counts(Family.IPV4, "kproxy", "services") == counts
    write(
        'add element ip kproxy services { 10.0.0.4 . 6 . 80 counter packets 1 bytes 9 comment "x" : drop }\n'
    )
    assert kernel.counts(Family.IPV4, "kproxy", "services") == {**counts, "10.0.0.4 . 6 . 80": (1, 9)}
    assert kernel.counts(Family.IPV4, "kproxy", "none") is None
    assert kernel.counts(Family.IPV4, "other", "services") is None


@fresh_network
def test_a_table_that_is_not_there_is_none_and_an_empty_one_is_empty() -> None:
    kernel = NetlinkNft()
    assert kernel.reading(Family.IPV4, names.TABLE) is None
    write(f"add table ip {names.TABLE}\n")
    assert kernel.reading(Family.IPV6, names.TABLE) is None
    reading = kernel.reading(Family.IPV4, names.TABLE)
    assert reading is not None
    assert reading == Reading({}, frozenset(), {})


class _Disturbed:
    """Commits something during each of the next `times` readings; `script` has a place for a number."""

    def __init__(self, script: str, times: int) -> None:
        self.readings = 0
        self._script = script
        self._times = times
        self._reading = dump.reading

    def reading(self, family: Family, table: str, *, elements: bool, portable: bool) -> Reading | None:
        self.readings += 1
        found = self._reading(family, table, elements=elements, portable=portable)
        if self.readings <= self._times:
            write(self._script.format(self.readings))
        return found

    def read(self, kernel: NetlinkNft) -> Reading | None:
        with patch.object(dump, "reading", self.reading):
            return kernel.reading(Family.IPV4, names.TABLE)


OWN = f"add element ip {names.TABLE} {names.CLUSTER_IPS} {{{{ 10.0.1.{{}} }}}}\n"


@fresh_network
def test_what_changes_while_it_is_read_is_read_again_within_bounds() -> None:
    _write(Family.IPV4, {})
    disturbed = _Disturbed(OWN, 3)
    reading = disturbed.read(NetlinkNft())
    assert reading is not None
    assert contents_of(reading) == {names.CLUSTER_IPS: {f"10.0.1.{n}": "" for n in (1, 2, 3)}}
    disturbed = _Disturbed(OWN.replace("10.0.1", "10.0.3"), 100)
    with pytest.raises(NftError, match="table ip kproxy kept changing") as caught:
        disturbed.read(NetlinkNft())
    assert caught.value.kind is NftFailure.INTERRUPTED
    assert disturbed.readings == 4
    times = iter((0.0, 29.0, 31.0))
    disturbed = _Disturbed(OWN.replace("10.0.1", "10.0.2"), 100)
    with pytest.raises(NftError, match="kept changing"):
        disturbed.read(NetlinkNft(lambda: next(times)))
    assert disturbed.readings == 2


@pytest.mark.parametrize(
    "other",
    [
        "add table ip other{}\n",
        "add table ip6 kproxy\nadd chain ip6 kproxy c{}\n",
        "add table ip kproxy2\nadd set ip kproxy2 s {{ type ipv4_addr; elements = {{ 10.0.0.{} }}; }}\n",
    ],
)
def test_changes_of_other_tables_do_not_repeat_a_reading(other: str) -> None:
    _others(other)


@fresh_network
def _others(script: str) -> None:
    _write(Family.IPV4, {names.CLUSTER_IPS: {"10.0.0.1": ""}})
    disturbed = _Disturbed(script, 100)
    reading = disturbed.read(NetlinkNft())
    assert disturbed.readings == 1
    assert reading is not None
    assert contents_of(reading) == {names.CLUSTER_IPS: {"10.0.0.1": ""}}


@fresh_network
def test_a_reading_of_many_messages_is_whole_while_other_tables_change() -> None:
    """The kernel says "interrupted" of every answer."""
    many = {f"10.1.{number // 256}.{number % 256}": "" for number in range(20000)}
    _write(Family.IPV4, {names.CLUSTER_IPS: many})
    stop = threading.Event()

    def disturb() -> None:
        kernel, number = NetlinkNft(), 0
        while not stop.is_set():
            number += 1
            kernel.commit(Transaction(Family.IPV4, "other", [AddTable(), AddChain(f"c{number}")]))

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        reading = NetlinkNft().reading(Family.IPV4, names.TABLE)
    finally:
        stop.set()
        thread.join()
    assert reading is not None
    assert contents_of(reading) == {names.CLUSTER_IPS: many}


_RULES = [
    pytest.param("add rule ip kproxy c ip daddr 10.0.0.3 drop", id="one more"),
    pytest.param(
        "replace rule ip kproxy c handle {handle} ip daddr 10.0.0.3 drop", id="another in its place"
    ),
    pytest.param(
        "replace rule ip kproxy c handle {handle} ip daddr {{ 10.0.0.3, 10.0.0.4 }} drop", id="its set"
    ),
    pytest.param("delete rule ip kproxy c handle {handle}", id="one less"),
    pytest.param("add chain ip kproxy c {{ policy drop; }}", id="policy"),
]


@pytest.mark.parametrize("change", _RULES)
def test_another_rule_makes_other_lines(change: str) -> None:
    _changed(change)


@fresh_network
def _changed(change: str) -> None:
    kernel = NetlinkNft()
    hook = "type filter hook input priority 0;"
    write(
        f"table ip kproxy {{ chain c {{ {hook} ip daddr {{ 10.0.0.1, 10.0.0.2 }} drop; }}; }}\n"
        f"table ip kproxy {{ chain d {{ drop; }}; }}\n"
        f"table ip other {{ chain c {{ {hook} accept; }}; chain e {{ accept; }}; }}\n"
    )
    before = kernel.reading(Family.IPV4, "kproxy", elements=False)
    assert before is not None
    assert before.elements is None
    assert {name: len(rules) for name, rules in before.chains.items()} == {"c": 2, "d": 1}
    assert before.chains["c"][0].startswith("type filter ")
    write("add rule ip other c drop\nadd table ip6 kproxy\n")
    assert kernel.reading(Family.IPV4, "kproxy", elements=False) == before
    write(change.format(handle=before.chains["c"][1].split()[0]) + "\n")
    after = kernel.reading(Family.IPV4, "kproxy", elements=False)
    assert after is not None
    assert {name for name in before.chains if after.chains[name] != before.chains[name]} == {"c"}


@fresh_network
def test_a_reading_gives_way_between_its_parts() -> None:
    nft_, asked = NetlinkNft(), list[bool]()
    nft_.commit(Transaction(Family.IPV4, "kproxy", (AddTable(), AddChain("a"), AddChain("b"))))

    def at(number: int) -> None:
        asked.clear()
        nft_.gives_way = lambda: asked.append(True) or len(asked) == number  # type: ignore[func-returns-value]

    at(0)
    assert nft_.reading(Family.IPV4, "kproxy") is not None
    for number in range(1, len(asked) + 1):
        at(number)
        with pytest.raises(NftError) as raised:
            nft_.reading(Family.IPV4, "kproxy")
        assert raised.value.kind is NftFailure.POSTPONED
    at(0)
    found = nft_.reading(Family.IPV4, "kproxy")
    assert found is not None
    assert found.chains.keys() == {"a", "b"}
