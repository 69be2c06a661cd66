"""Recordings: a replayed history ends in the same rules, and an anonymized file names nothing."""

from __future__ import annotations

import json
import re
import stat
import threading
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.inspect.render import addresses_of, render_manifests
from kproxy.modes.registry import mode_registry
from kproxy.node.facts import node_facts
from kproxy.plan.model import ServicePlan
from kproxy.plan.planner import Planner
from kproxy.sources.anonymous import anonymize
from kproxy.sources.anonymous_addresses import FIXED, ROOTS, AddressMap
from kproxy.sources.base import SourceError
from kproxy.sources.recording import (
    FORMAT,
    Header,
    RecordedNode,
    Recorder,
    Recording,
    RecordingError,
    read_recording,
    write_recording,
)
from kproxy.sources.replay import ReplaySource, load_replay
from kproxy.state.decode import decode
from kproxy.state.kinds import Kind
from kproxy.state.store import ObjectStore
from kproxy.state.tables import Tables
from tests.backends.strategies import CHANGE, SETTINGS, START
from tests.builders import as_service, as_slice, endpoint, endpoint_slice, raw, service

MODES = ("iptables", "ipvs", "nftables")
NODE = {
    "metadata": {"name": "node1", "labels": {"topology.kubernetes.io/zone": "zone-a"}},
    "spec": {"podCIDRs": ["10.1.0.0/16"]},
    "status": {"addresses": [{"type": "InternalIP", "address": "192.168.0.2"}]},
}
HEADER = Header(FORMAT, "node1")
CONFIG = ProxyConfig(node_name="node1", cluster_cidrs=("10.1.0.0/16",))


def play(sink: Recorder, start: list[tuple[str, Any]], changes: list[tuple[str, Any]]) -> None:
    """Pass lists and then changes to a sink, as a source does."""
    first = {
        what: {json.dumps(each["metadata"]): each for of, each in start if of == what}
        for what in ("service", "slice")
    }
    sink.replace(Kind.NODE, [decode(Kind.NODE, raw(NODE))], ())
    sink.replace(Kind.SERVICE_CIDR, [], ())
    sink.replace(
        Kind.SERVICE, list({o.key: o for o in map(as_service, first["service"].values())}.values()), ()
    )
    sink.replace(
        Kind.ENDPOINT_SLICE, list({o.key: o for o in map(as_slice, first["slice"].values())}.values()), ()
    )
    for what, value in changes:
        if what == "service":
            sink.upsert(Kind.SERVICE, as_service(value))
        elif what == "slice":
            sink.upsert(Kind.ENDPOINT_SLICE, as_slice(value))
        else:
            sink.delete(Kind.SERVICE, f"ns1/{value}")


def recorded(start: list[tuple[str, Any]], changes: list[tuple[str, Any]]) -> tuple[Recording, ObjectStore]:
    """A recording and the store that got the same events."""
    store = ObjectStore(())
    recorder = Recorder(sink=store)
    play(recorder, start, changes)
    return Recording(HEADER, tuple(recorder.entries)), store


def plans(tables: Tables | ObjectStore, family: Family, config: ProxyConfig) -> dict[str, ServicePlan]:
    node = tables.node() if isinstance(tables, ObjectStore) else tables.node
    inputs = tables.take_all([family]) if isinstance(tables, ObjectStore) else tables.dirty()
    facts = node_facts(config, node, addresses_of(node))
    assert facts is not None
    return dict(Planner(family).update(inputs, facts.view))


def rendered(store: ObjectStore, family: Family, config: ProxyConfig) -> str:
    facts = node_facts(config, store.node(), addresses_of(store.node()))
    assert facts is not None
    found = plans(store, family, config).values()
    return mode_registry().spec(config).render(config, family, facts.families[family], found)


def replayed(path: Path, family: Family, config: ProxyConfig, until: int = 0) -> str:
    config = msgspec.structs.replace(config, replay=path, replay_until=until)
    return render_manifests(config, family, mode_registry())[0]


@settings(SETTINGS, max_examples=50)
@given(START, st.lists(CHANGE, max_size=8))
def test_a_replayed_history_ends_in_the_same_rules(
    tmp_path_factory: pytest.TempPathFactory, start: list[tuple[str, Any]], changes: list[tuple[str, Any]]
) -> None:
    recording, store = recorded(start, changes)
    path = tmp_path_factory.getbasetemp() / "history.rec"
    write_recording(path, recording)
    assert read_recording(path) == recording
    for mode in MODES:
        config = msgspec.structs.replace(CONFIG, proxy_mode=mode)
        for family in Family:
            assert replayed(path, family, config) == rendered(store, family, config)


@settings(SETTINGS, max_examples=15)
@given(START, st.lists(CHANGE, max_size=5))
def test_every_prefix_of_a_history_can_be_replayed(
    tmp_path_factory: pytest.TempPathFactory, start: list[tuple[str, Any]], changes: list[tuple[str, Any]]
) -> None:
    recording, _ = recorded(start, changes)
    path = tmp_path_factory.getbasetemp() / "prefix.rec"
    write_recording(path, recording)
    lists = recording.events - len(changes)
    for done in range(len(changes) + 1):
        _, store = recorded(start, changes[:done])
        assert replayed(path, Family.IPV4, CONFIG, lists + done) == rendered(store, Family.IPV4, CONFIG)


def shape(tables: Tables, node: str, family: Family) -> list[Any]:
    """The plans of a cluster without names and addresses, in the order of names."""
    config = msgspec.structs.replace(CONFIG, node_name=node)
    found = []
    for key, plan in sorted(plans(tables, family, config).items()):
        text = str(plan)
        text = re.sub(r"'[^']*[0-9][^']*'", "''", text)
        found.append((key.count("/"), sorted(re.findall(r"\w+=(?:True|False|\d+|None)", text))))
    return found


def tables_of(recording: Recording) -> Tables:
    store = ObjectStore(())
    recording.play(store)
    tables = Tables()
    for kind in (Kind.NODE, Kind.SERVICE, Kind.ENDPOINT_SLICE):
        tables.replace(kind, list(store.objects(kind).values()))
    return tables


@settings(SETTINGS, max_examples=30)
@given(START, st.lists(CHANGE, max_size=5), st.binary(min_size=8, max_size=8))
def test_an_anonymized_history_has_equal_plans(
    start: list[tuple[str, Any]], changes: list[tuple[str, Any]], secret: bytes
) -> None:
    recording, _ = recorded(start, changes)
    hidden = anonymize(recording, secret)
    assert shape(tables_of(hidden), hidden.header.node, Family.IPV4) == shape(
        tables_of(recording), "node1", Family.IPV4
    )


def test_an_anonymized_file_has_no_original_name_or_address(tmp_path: Path) -> None:
    document = service(
        "cart",
        "10.96.3.7",
        namespace="shop",
        ports=[{"name": "checkout", "port": 80}],
        annotations={"kproxy.io/weights": '{"pod:cart-6f9-*": 3, "zone:eu-1a": 2, "node:big-*": 4}'},
        ingress=["203.0.113.9"],
        externalIPs=["198.51.100.7", "bad.example.org"],
        loadBalancerSourceRanges=["203.0.112.0/21"],
    )
    one = endpoint("10.1.4.5", node="worker-big", zones=["eu-1a"], ready=True)
    one |= {"zone": "eu-1a", "targetRef": {"kind": "Pod", "name": "cart-6f9-x2"}}
    recorder = Recorder()
    play(recorder, [], [])
    recorder.upsert(Kind.SERVICE, as_service(document))
    pods = endpoint_slice(
        one, service="cart", namespace="shop", name="cart-abcde", ports=[{"name": "checkout", "port": 8080}]
    )
    recorder.upsert(Kind.ENDPOINT_SLICE, as_slice(pods))
    recorder.delete(Kind.SERVICE, "shop/secret-project")
    facts = RecordedNode(("192.168.0.2", "127.0.0.1"), (("172.20.1.1", 6443),))
    path = tmp_path / "a.rec"
    write_recording(path, anonymize(Recording(HEADER, (facts, *recorder.entries))))
    text = path.read_text()
    names = ("cart", "shop", "checkout", "eu-1a", "worker-big", "big", "6f9", "secret", "node1", "example")
    addresses = ("10.96.3.7", "203.0.11", "198.51.100.7", "10.1.4.5", "192.168.0.2", "172.20.1.1", "10.1.0.0")
    assert [each for each in (*names, *addresses) if each in text] == []
    assert "127.0.0.1" in text
    objects = load_replay(path).objects
    (hidden,) = objects[Kind.SERVICE]
    plain = json.loads(msgspec.json.encode(hidden))
    assert json.loads(plain["metadata"]["annotations"]["kproxy.io/weights"]) == {
        "pod:pod-1": 3,
        "zone:zone-1": 2,
    }
    assert re.fullmatch(r"ns-\d/service-\d", hidden.key)
    assert read_recording(path).header.node.startswith("node-")


def test_a_new_name_is_never_an_old_one() -> None:
    recorder = Recorder()
    play(recorder, [], [])
    for number in range(1, 10):
        recorder.upsert(Kind.SERVICE, as_service(service(f"service-{number}", namespace="ns-1")))
    hidden = tables_of(anonymize(Recording(HEADER, tuple(recorder.entries))))
    keys = sorted(hidden.objects(Kind.SERVICE))
    assert keys == [f"ns-2/service-{number:02}" for number in range(1, 10)]


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses(), st.binary(min_size=4, max_size=4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_a_replaced_address_stays_in_the_replaced_range(
    first: Any, length: int, other: Any, secret: bytes
) -> None:
    replaced = AddressMap(secret)
    length = min(length, first.max_prefixlen)
    cidr = ip_network(f"{first}/{length}", strict=False)
    hidden = ip_network(replaced.cidr(str(cidr)))
    for each in (first, other, cidr.network_address, cidr.broadcast_address):
        if getattr(each, "ipv4_mapped", None) is not None:
            continue
        image = ip_address(replaced.address(str(each)))
        assert image.version == each.version
        assert (image in hidden) == (each in cidr)
        assert [net for net in FIXED if image in net] == [net for net in FIXED if each in net]
        assert [net for net in ROOTS if image in net] == [net for net in ROOTS if each in net]


BROKEN = [
    ("", "line 1: entry: the file is empty"),
    ("hello", "line 1: JSON is malformed"),
    ('{"entry":"upsert","event":1,"kind":"Node","object":{}}', "line 1: entry: the first line"),
    ('{"entry":"recording","format":9,"node":"n"}', "line 1: format: 9 is not 1"),
    ('{"entry":"recording","format":1}', "line 1: Object missing required field `node`"),
    ('HEAD\n{"entry":"delete","event":"x","kind":"Node","key":"n"}', r"line 2: .*int.* - at `\$.event`"),
    ('HEAD\n{"entry":"delete","event":2,"kind":"Node","key":"n"}', "line 2: event: 2 follows 0"),
    (
        'HEAD\n{"entry":"delete","event":1,"kind":"Secret","key":"n"}',
        "line 2: kind: 'Secret' is none of Service",
    ),
    ('HEAD\n{"entry":"unheard"}', "line 2: .*unheard"),
    (
        'HEAD\n{"entry":"listed","kind":"Service","object":{"metadata":{"name":"a"},"spec":{"ports":[{"port":"x"}]}}}',
        r'line 2: object: Service default/a: spec.ports\[0\].port="x"',
    ),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_a_bad_file_is_refused_with_line_and_field(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.rec"
    path.write_text(text.replace("HEAD", '{"entry":"recording","format":1,"node":"n"}'))
    with pytest.raises(RecordingError, match=message) as raised:
        read_recording(path)
    assert str(raised.value).startswith(f"{path}: ")
    with pytest.raises(SourceError, match=message):
        ReplaySource(path)


def test_a_file_is_its_owners_alone_and_may_be_compressed(tmp_path: Path) -> None:
    recording, _ = recorded([("service", service())], [("slice", endpoint_slice("10.1.1.1"))])
    path = tmp_path / "a.rec.gz"
    path.write_text("longer than nothing, and readable by all")
    path.chmod(0o644)
    write_recording(path, recording)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_recording(path) == recording
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RecordingError, match="is not complete"):
        read_recording(path)


def test_an_event_that_does_not_fit_ends_the_recording() -> None:
    recorder = Recorder(max_bytes=2000)
    play(recorder, [], [("service", service(f"svc{number}")) for number in range(20)])
    events = Recording(HEADER, tuple(recorder.entries)).events
    assert recorder.full
    assert 4 < events < 24
    recorder.delete(Kind.SERVICE, "ns1/svc1")
    assert Recording(HEADER, tuple(recorder.entries)).events == events


def test_a_replay_source_plays_once_and_waits_for_its_end(tmp_path: Path) -> None:
    recording, _ = recorded([("service", service())], [("drop", "none")])
    path = tmp_path / "a.rec"
    write_recording(path, recording)
    store = ObjectStore((Kind.SERVICE, Kind.NODE))
    source = ReplaySource(path)
    stop = threading.Event()
    thread = threading.Thread(target=source.run, args=(store, stop))
    thread.start()
    while not source.played:
        store.wait(30)
    assert store.ready
    assert thread.is_alive()
    stop.set()
    thread.join(30)
    assert store.services == 1
