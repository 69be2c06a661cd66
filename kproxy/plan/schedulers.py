"""IPVS schedulers: the names that the kernel knows, and the flags of sh and mh.

A Service's annotation may name one, and a setting names the default; both are parsed here.
"""

import msgspec

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq", "fo", "ovf", "mh", "twos")
"""net/netfilter/ipvs/ip_vs_*.c; twos since Linux 5.12."""

_LONGEST = 64
"""The longest text that is read; every valid one is shorter."""

_TAKES_FLAGS = frozenset({"sh", "mh"})


class Scheduler(msgspec.Struct, frozen=True, gc=False):
    """A scheduler with its flags: `fallback` for sh- and mh-fallback, `hash_port` for sh- and mh-port."""

    name: str
    fallback: bool = False
    hash_port: bool = False

    def __str__(self) -> str:
        """The name and the flags that are set, as `parse_scheduler` reads them."""
        flags = [(self.fallback, "fallback"), (self.hash_port, "port")]
        return ",".join([self.name, *(f"{self.name}-{flag}" for is_set, flag in flags if is_set)])


_DEFAULT_FLAGS = {
    # A draining destination keeps its buckets in sh's table; without fallback its clients are refused
    # (ip_vs_sh.c). mh hashes ports too, as kube-proxy's does (kubernetes#115526).
    "sh": Scheduler("sh", fallback=True),
    "mh": Scheduler("mh", hash_port=True),
}


def parse_scheduler(text: str) -> Scheduler:
    """Parse `NAME` or `NAME,FLAG,...` with flags as ipvsadm names them: `sh`, `mh,mh-fallback`.

    Named flags replace the defaults: sh falls back, mh hashes ports too. Raises ValueError, which lists the
    known names, for an unknown name or flag.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"not one of {', '.join(SCHEDULERS)}")
    name, *flags = (part.strip() for part in text.split(","))
    if name not in SCHEDULERS:
        raise ValueError(f"not one of {', '.join(SCHEDULERS)}")
    if not flags:
        return _DEFAULT_FLAGS.get(name, Scheduler(name))
    if name not in _TAKES_FLAGS:
        raise ValueError(f"scheduler {name} takes no flags")
    known = {f"{name}-fallback", f"{name}-port"}
    if not known.issuperset(flags):
        raise ValueError(f"the flags of scheduler {name} are {name}-fallback and {name}-port")
    return Scheduler(name, f"{name}-fallback" in flags, f"{name}-port" in flags)
