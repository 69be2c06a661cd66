"""Files of libcni's cache: what is read of each version, what is ignored, and how soon a new one is known."""

from __future__ import annotations

import base64
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from kproxy.sources.cni_cache import CniCache, CniResult, decode, newest

INTERFACES = [{"name": "mynet0"}, {"name": "veth1234"}, {"name": "eth0", "sandbox": "/run/netns/x"}]
CURRENT = {"ips": [{"address": "10.244.1.7/24"}, {"address": "FD00:10::07/64"}], "interfaces": INTERFACES}
OLD = {"ip4": {"ip": "10.244.1.8/24"}, "ip6": {"ip": "fd00::8/64"}}
PLUGINS = {
    "name": "mynet",
    "plugins": [
        {"type": "bridge", "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.1.9/24"}]]}},
        {"type": "portmap"},
        {"type": "other", "ipam": {"type": "host-local", "subnet": "fd00:10::/64"}},
        {"type": "other", "ipam": {"type": "dhcp", "subnet": "192.0.2.0/24"}},
    ],
}


def content(**changed: object) -> bytes:
    args = [
        ["IgnoreUnknown", "1"],
        ["K8S_POD_NAMESPACE", "shop"],
        ["K8S_POD_NAME", "web-0"],
        ["K8S_POD_UID", "u-1"],
    ]
    config = base64.b64encode(json.dumps(PLUGINS).encode()).decode()
    cached = {"kind": "cniCacheV1", "containerId": "c", "ifName": "eth0", "networkName": "mynet"}
    return json.dumps({**cached, "cniArgs": args, "config": config, "result": CURRENT, **changed}).encode()


def test_a_result_names_the_pod_its_addresses_and_the_interfaces_of_the_node() -> None:
    assert decode(content(), 7) == CniResult(
        "shop/web-0",
        "u-1",
        ("10.244.1.7", "fd00:10::7"),
        ("mynet0", "veth1234"),
        ("10.244.1.0/24", "fd00:10::/64"),
        7,
    )


@pytest.mark.parametrize(
    ("changed", "addresses"),
    [
        ({"result": OLD}, ("10.244.1.8", "fd00::8")),
        ({"result": {"ips": [{"address": "127.0.0.1/8"}, {"address": "fe80::1/64"}]}}, None),
        ({"result": {"ips": [{"address": "10.244.1.300/24"}, {"address": "10.0.0.9"}]}}, ("10.0.0.9",)),
        ({"result": {"ips": []}}, None),
        ({"result": None}, None),
        ({"kind": "cniCacheV2"}, None),
        ({"ifName": "net1"}, None),
        ({"cniArgs": [["K8S_POD_NAMESPACE", "shop"]]}, None),
        ({"cniArgs": None}, None),
        ({"config": "not base64!"}, ("10.244.1.7", "fd00:10::7")),
        ({"config": "nötig"}, ("10.244.1.7", "fd00:10::7")),
    ],
    ids=str,
)
def test_what_is_no_address_of_a_pod_is_ignored(
    changed: dict[str, object], addresses: tuple[str, ...] | None
) -> None:
    found = decode(content(**changed))
    assert (None if found is None else found.addresses) == addresses


@pytest.mark.parametrize(
    "broken", [b"", b"[]", b'{"kind": 1}', content()[:-5]], ids=("empty", "list", "number", "cut")
)
def test_files_of_another_form_are_no_results(broken: bytes, tmp_path: Path) -> None:
    with pytest.raises(msgspec.MsgspecError):
        decode(broken)
    (tmp_path / "good").write_bytes(content())
    (tmp_path / "broken").write_bytes(broken)
    cache = CniCache(lambda: None, tmp_path)
    cache.refresh()
    assert list(cache.results) == ["good"]


def test_of_a_pod_with_two_sandboxes_the_newest_counts() -> None:
    first, second = CniResult("a/b", "u", ("10.0.0.1",), at=1), CniResult("a/b", "u", ("10.0.0.2",), at=2)
    other = CniResult("a/b", "v", ("10.0.0.1",), at=3)
    assert newest({"x": second, "y": first, "z": other}) == {("a/b", "u"): second, ("a/b", "v"): other}


@contextmanager
def followed(directory: Path) -> Iterator[tuple[CniCache, threading.Condition]]:
    changed = threading.Condition()

    def notify() -> None:
        with changed:
            changed.notify_all()

    cache, stop = CniCache(notify, directory), threading.Event()
    thread = threading.Thread(target=cache.run, args=(stop,))
    thread.start()
    try:
        yield cache, changed
    finally:
        stop.set()
        thread.join()


def test_results_are_followed_from_before_the_directory_exists(tmp_path: Path) -> None:
    directory = tmp_path / "cni" / "results"
    with followed(directory) as (cache, changed), changed:
        directory.mkdir(parents=True)
        file = directory / "mynet-c-eth0"
        file.write_bytes(content())
        assert changed.wait_for(lambda: list(cache.results) == [file.name], 10)
        file.unlink()
        assert changed.wait_for(lambda: not cache.results, 10)


def test_a_file_is_read_when_it_is_complete(tmp_path: Path) -> None:
    with followed(tmp_path) as (cache, changed), changed:
        whole = content()
        number = os.open(tmp_path / "one", os.O_CREAT | os.O_WRONLY)
        os.write(number, whole[:50])
        (tmp_path / "two").write_bytes(whole)
        assert changed.wait_for(lambda: list(cache.results) == ["two"], 10)
        os.write(number, whole[50:])
        os.close(number)
        assert changed.wait_for(lambda: sorted(cache.results) == ["one", "two"], 10)


def test_unchanged_files_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one").write_bytes(content())
    told: list[int] = []
    cache = CniCache(lambda: told.append(1), tmp_path)
    cache.refresh()
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} is read again"))
    cache.refresh()
    assert (list(cache.results), told) == (["one"], [1])
