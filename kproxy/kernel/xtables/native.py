"""Rules in tables that iptables-nft shares with native nft rules, over netlink.

One rule that iptables cannot print makes iptables-nft-save print nothing of its table, and iptables-nft list
nothing of its chain (nft_is_table_compatible in iptables/nft.c). Here each rule of a chain is a line: jumps
as iptables-save prints them, and any other rule by its handle, which the kernel never reuses in the table.

Layouts are those of include/uapi/linux/netfilter/nf_tables.h, nf_tables_compat.h and xt_conntrack.h.
"""

import contextlib
import errno
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from kproxy.addresses import Family
from kproxy.kernel.netlink.messages import (
    NLM_F_ACK,
    NLM_F_REQUEST,
    NLMSG_ERROR,
    attribute,
    attributes,
    each_message,
    error_code,
    every_attribute,
    message,
)
from kproxy.kernel.netlink.socket import NetlinkSocket
from kproxy.kernel.nft_tables import NO_NFTABLES
from kproxy.kernel.xtables.types import NATIVE_RULE

BUILT_IN: Mapping[str, tuple[str, ...]] = {
    "raw": ("PREROUTING", "OUTPUT"),
    "mangle": ("PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"),
    "nat": ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"),
    "filter": ("INPUT", "FORWARD", "OUTPUT"),
    "security": ("INPUT", "FORWARD", "OUTPUT"),
}
"""The tables of nftables' families ip and ip6 that iptables-nft writes to, and their built-in chains."""

_NETLINK_NETFILTER = 12
_SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
_GET_TABLE, _GET_CHAIN, _GET_RULE, _DELETE_RULE = 1, 4, 7, 8
_BATCH_BEGIN, _BATCH_END = 0x10, 0x11
_TABLE = 1  # of tables, chains and rules
_CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 3, 4, 5
_RULE_CHAIN, _RULE_HANDLE, _RULE_EXPRESSIONS, _RULE_USER_DATA = 2, 3, 4, 7
_EXPRESSION_NAME, _EXPRESSION_DATA = 1, 2
_IMMEDIATE_REGISTER, _IMMEDIATE_DATA = 1, 2
_VERDICT, _VERDICT_CODE, _VERDICT_CHAIN = 2, 1, 2
_VERDICTS = {-3: "-j", -4: "-g"}  # NFT_JUMP, NFT_GOTO
_MATCH_NAME, _MATCH_INFO = 1, 3
_POLICIES = {0: "DROP", 1: "ACCEPT"}
_CONNTRACK_STATE = struct.Struct("=146xHHH")  # xt_conntrack_mtinfo3: match_flags, invert_flags, state_mask
_STATE, _NEW = 1, 1 << 3  # XT_CONNTRACK_STATE, XT_CONNTRACK_STATE_BIT(IP_CT_NEW)
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
_PLAIN = re.compile(r"[ !#-\[\]-~]+")  # a comment that iptables-save prints as it is, between quotes
_NFGENMSG = struct.Struct("!BBH")
_FAMILIES = {Family.IPV4: socket.AF_INET, Family.IPV6: socket.AF_INET6}
_RECEIVE_BYTES = 1 << 18
_TIMEOUT = 5.0


class Rule(msgspec.Struct, frozen=True):
    """A rule of a chain: its handle, and its line, which ends in a line feed."""

    handle: int
    line: str


def tables(family: Family) -> frozenset[str]:
    """Return the existing tables of iptables-nft. Raises OSError."""
    with _socket() as sock:
        try:
            answers = sock.dump(_SUBSYSTEM << 8 | _GET_TABLE, _NFGENMSG.pack(_FAMILIES[family], 0, 0))
            names = {_text(attributes(answer[_NFGENMSG.size :])[_TABLE]) for answer in answers}
        except OSError as error:
            if error.errno in NO_NFTABLES:
                return frozenset()
            raise
    return frozenset(names.intersection(BUILT_IN))


def chains(family: Family, table: str) -> Mapping[str, str]:
    """Return the chains of a table, each with its policy, `-` for one without a hook. Raises OSError."""
    found: dict[str, str] = {}
    with _socket() as sock:
        for answer in sock.dump(_SUBSYSTEM << 8 | _GET_CHAIN, _request(family, table)):
            held = attributes(answer[_NFGENMSG.size :])
            if _text(held[_TABLE]) == table:
                policy = int.from_bytes(held.get(_CHAIN_POLICY, b"\1"), "big")
                name = _text(held[_CHAIN_NAME])
                found[name] = _POLICIES.get(policy, "ACCEPT") if _CHAIN_HOOK in held else "-"
    return found


def rules(family: Family, table: str, chain: str) -> Sequence[Rule]:
    """Return the rules of a chain in order; empty if it does not exist. Raises OSError."""
    wanted = attribute(_RULE_CHAIN, chain.encode() + b"\0")
    found: list[Rule] = []
    with _socket() as sock:
        try:
            for answer in sock.dump(_SUBSYSTEM << 8 | _GET_RULE, _request(family, table) + wanted):
                held = attributes(answer[_NFGENMSG.size :])
                if _text(held[_TABLE]) == table and _text(held[_RULE_CHAIN]) == chain:
                    found.append(_rule(chain, held))
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def delete(family: Family, table: str, doomed: Sequence[tuple[str, int]]) -> None:
    """Delete rules, each by chain and handle, in one transaction. Raises OSError; then nothing was done."""
    bound = _NFGENMSG.pack(socket.AF_UNSPEC, 0, _SUBSYSTEM)
    batch = [message(_BATCH_BEGIN, NLM_F_REQUEST, 1, bound)]
    for number, (chain, handle) in enumerate(doomed, 2):
        body = _request(family, table) + attribute(_RULE_CHAIN, chain.encode() + b"\0")
        body += attribute(_RULE_HANDLE, handle.to_bytes(8, "big"))
        kind = _SUBSYSTEM << 8 | _DELETE_RULE
        batch.append(message(kind, NLM_F_REQUEST | NLM_F_ACK, number, body))
    batch.append(message(_BATCH_END, NLM_F_REQUEST, len(doomed) + 2, bound))
    waiting = set(range(2, len(doomed) + 2))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(_TIMEOUT)
        sock.sendto(b"".join(batch), (0, 0))
        while waiting:
            for kind, _, sequence, content in each_message(sock.recv(_RECEIVE_BYTES)):
                if kind == NLMSG_ERROR:
                    if code := error_code(content):
                        raise OSError(code, os.strerror(code))
                    waiting.discard(sequence)


def _rule(chain: str, held: Mapping[int, bytes]) -> Rule:
    handle = int.from_bytes(held[_RULE_HANDLE], "big")
    jump, matches = _jump(held.get(_RULE_EXPRESSIONS, b""))
    comment = _user_comment(held.get(_RULE_USER_DATA, b""))
    if jump and matches is not None and (not comment or _comment(comment)):
        words = [*matches, *([_comment(comment)] if comment else []), jump]
    else:
        words = [f"{NATIVE_RULE}{handle}", *([jump] if jump else [])]
    return Rule(handle, f"-A {chain} {' '.join(words)}\n")


def _jump(expressions: bytes) -> tuple[str, list[str] | None]:
    """Return a rule's jump, or "", and its matches; None if it has other expressions than proxies' jumps."""
    jump = ""
    matches: list[str] = []
    known = True
    for _, expression in every_attribute(expressions):
        held = attributes(expression)
        name, data = _text(held[_EXPRESSION_NAME]), attributes(held.get(_EXPRESSION_DATA, b""))
        if name == "immediate":
            jump = _verdict(data)
            known &= bool(jump)
        elif name == "match":
            match = _match(_text(data[_MATCH_NAME]), data[_MATCH_INFO])
            known &= bool(match)
            matches.append(match)
        elif name != "counter":
            known = False
    return jump, matches if known else None


def _verdict(immediate: Mapping[int, bytes]) -> str:
    verdict = attributes(attributes(immediate.get(_IMMEDIATE_DATA, b"")).get(_VERDICT, b""))
    word = _VERDICTS.get(int.from_bytes(verdict.get(_VERDICT_CODE, b""), "big", signed=True))
    return f"{word} {_text(verdict[_VERDICT_CHAIN])}" if word and _VERDICT_CHAIN in verdict else ""


def _match(name: str, info: bytes) -> str:
    """Return a match of x_tables as iptables-save prints it; "" for an unknown match."""
    if name == "comment":
        return _comment(_text(info.partition(b"\0")[0]))
    if name == "conntrack" and len(info) >= _CONNTRACK_STATE.size:
        flags, inverted, states = _CONNTRACK_STATE.unpack_from(info)
        rest = info[:146] + info[_CONNTRACK_STATE.size :]
        if (flags, inverted, states) == (_STATE, 0, _NEW) and not any(rest):
            return "-m conntrack --ctstate NEW"
    return ""


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}"' if _PLAIN.fullmatch(text) else ""


def _user_comment(data: bytes) -> str:
    """The comment in a rule's user data: type, length, value (libnftnl/udata.h)."""
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        if kind == _COMMENT:
            return _text(data[offset + 2 : offset + 2 + length])
        offset += 2 + length
    return ""


def _text(packed: bytes) -> str:
    return packed.rstrip(b"\0").decode("utf-8", "replace")


def _request(family: Family, table: str) -> bytes:
    return _NFGENMSG.pack(_FAMILIES[family], 0, 0) + attribute(_TABLE, table.encode() + b"\0")


@contextlib.contextmanager
def _socket() -> Iterator[NetlinkSocket]:
    """A socket in the current network namespace of the calling thread."""
    sock = NetlinkSocket(_NETLINK_NETFILTER)
    try:
        yield sock
    finally:
        sock.close()
