"""The netlink socket against the kernel: what is sent in bulk, and what becomes of it."""

import errno
import fcntl
import os
import resource
import socket
import struct

import pytest

from kproxy.kernel.netlink import addresses
from kproxy.kernel.netlink.messages import NLM_F_CREATE, NLM_F_EXCL
from kproxy.kernel.netlink.socket import CHUNK_MESSAGES, NetlinkLost, NetlinkSocket, readable
from tests.kernel.namespace import fresh_network

pytestmark = pytest.mark.root

LO = 1


def additions(count: int) -> list[tuple[int, int, bytes]]:
    flags = NLM_F_CREATE | NLM_F_EXCL
    return [
        (addresses.RTM_NEWADDR, flags, addresses.payload(f"10.9.{n >> 8}.{n & 255}", LO))
        for n in range(count)
    ]


@fresh_network
def test_every_refusal_has_its_index() -> None:
    sock = NetlinkSocket(addresses.NETLINK_ROUTE)
    count = 2 * CHUNK_MESSAGES + 5
    twice = [request for request in additions(count) for _ in (1, 2)]
    assert sock.batch(twice) == dict.fromkeys(range(1, 2 * count, 2), errno.EEXIST)
    assert len(list(addresses.dump(sock, socket.AF_INET, LO))) == count
    assert sock.batch([]) == {}


@fresh_network
def test_sequence_numbers_start_anew_when_they_run_out() -> None:
    sock = NetlinkSocket(addresses.NETLINK_ROUTE)
    sock._sequence = (1 << 32) - 3
    assert sock.batch(additions(10)) == {}
    assert len(list(addresses.dump(sock, socket.AF_INET))) == 10


@fresh_network
def test_answers_of_an_abandoned_request_are_not_taken_for_others() -> None:
    sock = NetlinkSocket(addresses.NETLINK_ROUTE)
    (kind, flags, payload), *_ = additions(1)
    sock._send(b"".join([_message(kind, flags, payload, sequence=77)]))
    assert sock.batch(additions(3)) == {0: errno.EEXIST}


@fresh_network
def test_the_wait_for_a_kernel_that_does_not_answer_ends() -> None:
    sock = NetlinkSocket(addresses.NETLINK_ROUTE)
    sock._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("@ll", 0, 1000))
    with pytest.raises(NetlinkLost, match="did not answer"):
        list(sock._receive())


def _message(kind: int, flags: int, payload: bytes, *, sequence: int) -> bytes:
    from kproxy.kernel.netlink.messages import NLM_F_ACK, NLM_F_REQUEST, message

    return message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, sequence, payload)


def test_descriptors_above_1023_can_be_waited_for() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    number = 2000
    if hard != resource.RLIM_INFINITY and hard <= number:
        pytest.skip(f"at most {hard} descriptors are allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number + 1), hard))
    reader, writer = os.pipe()
    high = fcntl.fcntl(reader, fcntl.F_DUPFD_CLOEXEC, number)
    try:
        assert readable((high,), 0.0) == frozenset()
        os.write(writer, b"x")
        assert readable((high,), 10.0) == {high}
    finally:
        for each in (reader, writer, high):
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
