"""`kproxy record` at an API server: the objects are recorded, and no credential is."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from kproxy.config.documents import Settings
from kproxy.config.model import ProxyConfig
from kproxy.inspect import record as module
from kproxy.inspect.record import RecordingFailed, record
from kproxy.sources.recording import read_recording
from kproxy.sources.replay import load_replay
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver.access import write_kubeconfig
from kproxy_lab.apiserver.server import ApiServer
from tests.sources.objects import node, service
from tests.state.policy_objects import pod_json

NO_AGENT = "127.0.0.1:1"


def write(path: Path, kubeconfig: Path, seconds: float = 0.0) -> None:
    config = ProxyConfig(node_name="n1", kubeconfig=kubeconfig)
    stop = threading.Event()
    record(config, Settings(), path, seconds=seconds, address=NO_AGENT, anonymous=False, stop=stop)


def test_the_objects_of_a_server_are_recorded_without_credentials(tmp_path: Path) -> None:
    path = tmp_path / "a.rec"
    with ApiServer() as api:
        api.apply(service("web"), validate=False)
        api.apply(node("n1"), validate=False)
        kubeconfig = api.kubeconfig(tmp_path / "kubeconfig")
        write(path, kubeconfig)
        server = api.url
    objects = load_replay(path).objects
    assert [each.key for each in objects[Kind.SERVICE]] == ["default/web"]
    assert [each.key for each in objects[Kind.NODE]] == ["n1"]
    recording = read_recording(path)
    assert recording.node is not None
    assert [f"http://{ip}:{port}" for ip, port in recording.node.api_servers] in ([], [server])
    text = path.read_text()
    tokens = [
        line.partition(":")[2].strip() for line in kubeconfig.read_text().splitlines() if "token" in line
    ]
    assert [each for each in (*tokens, str(kubeconfig)) if each in text] == []


def test_with_policies_their_objects_are_recorded_too(tmp_path: Path) -> None:
    config = ProxyConfig(node_name="n1", network_policy=True)
    with ApiServer() as api:
        for each in (node("n1"), pod_json("web"), service("web")):
            api.apply(each)
        config = msgspec.structs.replace(config, kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
        for wanted in (True, False):
            chosen = msgspec.structs.replace(config, network_policy=wanted)
            path = tmp_path / f"{wanted}.rec"
            stop = threading.Event()
            record(chosen, Settings(), path, seconds=0.0, address=NO_AGENT, anonymous=wanted, stop=stop)
    (pod,) = load_replay(tmp_path / "True.rec").objects[Kind.POD]
    assert pod.key.endswith("/pod-1")
    assert load_replay(tmp_path / "False.rec").objects[Kind.POD] == ()
    assert load_replay(tmp_path / "False.rec").objects[Kind.SERVICE] != ()


def test_without_a_complete_list_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LISTS_SECONDS", 0.1)
    path = tmp_path / "a.rec"
    kubeconfig = write_kubeconfig(tmp_path / "kubeconfig", "http://127.0.0.1:1")
    with pytest.raises(RecordingFailed, match="no complete list of EndpointSlice, Node, Service"):
        write(path, kubeconfig)
    assert not path.exists()
