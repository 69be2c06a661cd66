"""Hashes of service ports and endpoints, as in kube-proxy's chain names (pkg/proxy/iptables/proxier.go)."""

import hashlib

_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = tuple(first + second for first in _ALPHABET for second in _ALPHABET)
_SHIFTS = range(70, -1, -10)


def port_hash(port_name: str, protocol: str) -> str:
    """Return the hash of a service port; `protocol` in lower case."""
    return digest(port_name + protocol)


def digest(text: str) -> str:
    """Return base32 (RFC 4648) of the first 80 bits of SHA-256 (base64.b32encode is five times slower)."""
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10], "big")
    return "".join([_PAIRS[bits >> shift & 1023] for shift in _SHIFTS])
