"""The local socket: root is answered, others are not, and each network namespace has its own."""

import subprocess
import sys
import threading

import pytest

from kproxy.inspect.agent_client import AgentRefused, AgentUnavailable, get_local
from kproxy.node.instance import Instance
from kproxy.telemetry.http.local import LocalServer
from kproxy.telemetry.http.server import Answer
from tests.kernel.namespace import enter_new, fresh_network

TAKE_THE_NAME = """
import os, sys
from kproxy.node import local_socket
os.setuid(65534)
taken = local_socket.listener()
sys.stdout.write("x")
sys.stdout.flush()
sys.stdin.read()
"""
ASK_AS_NOBODY = """
import os, socket
from kproxy.inspect.agent_client import AgentUnavailable, get_local
from kproxy.node import local_socket
os.setuid(65534)
try:
    print(get_local("/echo?secret", list))
except AgentUnavailable as error:
    print("refused:", error)
with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as raw:
    raw.settimeout(5)
    raw.connect("\\0kproxy.io/queries")
    try:
        raw.sendall(b"GET /echo?secret HTTP/1.1\\r\\n\\r\\n")
        print("raw:", raw.recv(100))
    except ConnectionError:
        print("raw:", b"")
"""


def echo(query: str) -> Answer:
    if query == "bad":
        return Answer(b"no such thing\n", status=400)
    return Answer(b'["%s"]' % query.encode())


@pytest.fixture
def server() -> LocalServer:
    return LocalServer({"/echo": echo})


@fresh_network
def test_root_is_answered_at_the_socket_of_its_own_network_namespace(server: LocalServer) -> None:
    server.start()
    try:
        assert get_local("/echo?one", list) == ["one"]
        with pytest.raises(AgentRefused, match="no such thing"):
            get_local("/echo?bad", list)
        with pytest.raises(AgentUnavailable, match="404"):
            get_local("/metrics", list)
        elsewhere: list[str] = []

        def ask() -> None:
            enter_new()
            with pytest.raises(AgentUnavailable) as failed:
                get_local("/echo?one", list)
            elsewhere.append(str(failed.value))
            other = LocalServer({"/echo": lambda _: Answer(b'["other"]')})
            other.start()
            elsewhere.extend(get_local("/echo?one", list))
            other.stop()

        thread = threading.Thread(target=ask)
        thread.start()
        thread.join()
        assert elsewhere == ["no kproxy runs in this network namespace", "other"]
    finally:
        server.stop()


@fresh_network
def test_another_user_is_not_answered(server: LocalServer) -> None:
    server.start()
    try:
        done = subprocess.run(
            [sys.executable, "-c", ASK_AS_NOBODY], capture_output=True, text=True, check=True, timeout=60
        )
    finally:
        server.stop()
    assert done.stdout.splitlines() == [
        "refused: root is needed: only root is answered about who talks to whom",
        "raw: b''",
    ]


@fresh_network
def test_a_process_of_another_user_that_took_the_name_is_not_asked(server: LocalServer) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", TAKE_THE_NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.read(1) == b"x"
        with pytest.raises(AgentUnavailable, match="another user's process has the name"):
            get_local("/echo?one", list)
        with pytest.raises(OSError, match=r"local: cannot bind @kproxy\.io/queries"):
            server.start(hard_fail=True)
        child.stdin.close()


@fresh_network
def test_a_kproxy_without_policies_is_named() -> None:
    with Instance("run", "1.0", lambda: "nftables") as instance:
        instance.acquire()
        with pytest.raises(AgentUnavailable, match=r"mode nftables.* does not enforce NetworkPolicies"):
            get_local("/echo", list)
