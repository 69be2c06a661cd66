"""An API server that was gone is noticed soon after its return, however long and however it was gone."""

import json
import random
import socket
import struct
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kproxy.sources.backoff import Backoff
from kproxy.sources.config import KubernetesSourceConfig
from kproxy.sources.errors import UnreachableError
from kproxy.sources.kubernetes import ClusterAccess, KubernetesSource
from kproxy.sources.transport import Transport, TransportConfig
from kproxy.state.kinds import Kind
from kproxy_lab.apiserver import ApiServer, Fault
from kproxy_lab.apiserver.listener import bind
from tests.kernel.namespace import fresh_network
from tests.sources.conftest import FAST, MakeSource
from tests.sources.objects import service
from tests.sources.recording import Running, wait_for_status

DAYS = 1e6
"""A wait that no test outlives."""


@given(st.lists(st.booleans(), max_size=60))
def test_waits_are_bounded_and_those_of_an_outage_count_apart(reached: list[bool]) -> None:
    config = KubernetesSourceConfig()
    backoff = Backoff(config)
    answered = unreached = 0
    for each in reached:
        answered, unreached = (answered + 1, 0) if each else (answered, unreached + 1)
        ceiling = config.backoff_seconds * 2 ** ((answered if each else unreached) - 1)
        longest = config.backoff_max_seconds if each else config.unreachable_max_seconds
        assert 0 <= backoff.next(None, reached=each) <= min(ceiling, longest)
    assert backoff.failures == len(reached)
    assert backoff.next(100.0, reached=True) == 100.0


def test_waits_double_up_to_the_limit_of_their_series(monkeypatch: pytest.MonkeyPatch) -> None:
    """The longest that chance gives; "u": no server was reached, "a": one answered."""
    monkeypatch.setattr(random, "uniform", lambda _shortest, longest: longest)
    config = KubernetesSourceConfig(backoff_seconds=1.0, backoff_max_seconds=5.0, unreachable_max_seconds=3.0)
    backoff = Backoff(config)

    def waits(failures: str) -> list[float]:
        return [backoff.next(None, reached=each == "a") for each in failures]

    assert waits("uuuu") == [1, 2, 3, 3]
    assert waits("aaaa") == [1, 2, 4, 5]
    assert waits("uu") == [1, 2]
    assert backoff.next(3.5, reached=True) == 5
    assert backoff.failures == 11
    backoff.reset()
    assert backoff.failures == 0
    assert waits("auua") == [1, 1, 2, 2]
    assert backoff.failures == 4


OUTAGES = {
    "nobody listens": Fault.refuse(),
    "a load balancer closes connections": Fault.close(times=None),
    "a load balancer answers 503": Fault.gateway(503),
    "a proxy answers 502": Fault.gateway(502),
}


@pytest.mark.parametrize("outage", OUTAGES.values(), ids=OUTAGES)
def test_the_longest_outage_is_followed_by_a_short_wait(make_source: MakeSource, outage: Fault) -> None:
    """A wait of the other series would be days: it doubles thirty times."""
    with ApiServer() as api:
        source = make_source(api, backoff_max_seconds=DAYS, steady_seconds=DAYS)
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE)
            with api.faults.during(outage):
                api.drop_watches()
                api.apply(service("meanwhile"), validate=False)
                wait_for_status(
                    source, lambda each: each.kind is Kind.SERVICE and each.consecutive_failures >= 30
                )
                starting = api.faults.add(Fault.status(503, times=3))
            assert api.faults.wait(starting, hits=3)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/meanwhile"})


@pytest.mark.parametrize("code", [500, 503, 504])
def test_an_api_server_that_answers_wrongly_is_left_alone_longer(make_source: MakeSource, code: int) -> None:
    with ApiServer() as api:
        api.faults.add(Fault.status(code, times=None))
        source = make_source(api, backoff_seconds=DAYS, backoff_max_seconds=DAYS)
        with Running(source):
            status = wait_for_status(
                source, lambda each: each.kind is Kind.SERVICE and each.consecutive_failures == 1
            )
    assert str(code) in str(status.last_error)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_accepts_and_closes_is_no_api_server(tmp_path: Path, scheme: str) -> None:
    """As a load balancer that passes TLS through."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "users": [{"name": "u", "user": {}}],
            "clusters": [
                {
                    "name": "c",
                    "cluster": {
                        "server": f"{scheme}://127.0.0.1:{listener.getsockname()[1]}",
                        "insecure-skip-tls-verify": True,
                    },
                }
            ],
        }
        (tmp_path / "kubeconfig").write_text(json.dumps(config), encoding="utf-8")

        def serve() -> None:
            connection, _ = listener.accept()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=serve)
        thread.start()
        transport = Transport(ClusterAccess(kubeconfig=tmp_path / "kubeconfig"))
        with pytest.raises(UnreachableError):
            transport.open("/api/v1/services", {}, 10.0)
        thread.join()


@fresh_network
def test_a_server_that_vanished_without_a_word_is_noticed_at_its_return(tmp_path: Path) -> None:
    """The connection dies unseen, as where a machine loses its power; by silence it would take days."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with ApiServer(sockets=_resetting) as api:
        config = TransportConfig(keepalive_seconds=1)
        access = ClusterAccess(kubeconfig=api.kubeconfig(tmp_path / "kubeconfig"))
        source = KubernetesSource(access, None, _patient(config))
        with Running(source) as sink:
            sink.wait_listed(Kind.SERVICE)
            assert api.wait_watchers(2)
            rule = ["INPUT", "-i", "lo", "-p", "tcp", "-j", "DROP"]
            if subprocess.run(["iptables", "-A", *rule], check=False).returncode:
                pytest.skip("this kernel takes no iptables rules")
            api.drop_connections()
            api.apply(service("meanwhile"), validate=False)
            subprocess.run(["iptables", "-D", *rule], check=True)
            sink.wait(lambda: sink.keys(Kind.SERVICE) == {"default/meanwhile"})


def _resetting(host: str, port: int) -> socket.socket:
    """A listener whose connections end by one RST: unlike a FIN, it is not sent again when it is lost."""
    made = bind(host, port)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def _patient(transport: TransportConfig) -> KubernetesSourceConfig:
    return KubernetesSourceConfig(
        backoff_seconds=FAST.backoff_seconds, inactivity_seconds=DAYS, transport=transport
    )
