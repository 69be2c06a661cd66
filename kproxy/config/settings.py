"""The declaration of a setting: one `Setting` in the annotation of a field completes its type.

The field of the schema gives name, type, checks and default. Flags, KPROXY_* variables, `--help`, the list of
live settings, the resolved configuration and the reference table of the docs are derived from both.
"""

from enum import Enum, IntEnum, auto
from typing import Any

import msgspec


class Group(Enum):
    """A heading of `--help`; in this order."""

    COMMON = "Common"
    IPTABLES = "iptables"
    IPVS = "ipvs"
    NFTABLES = "nftables"
    EBPF = "eBPF"
    NETWORK_POLICY = "NetworkPolicy"
    CONNTRACK = "conntrack"
    LIMITS = "limits"
    SERVERS = "Servers"
    LOGGING = "Logging"
    IGNORED = "Accepted and ignored"


class Scope(IntEnum):
    """Which commands have the flag; each scope includes those before it."""

    RULES = auto()
    """`render` and all others: the rules depend on the setting."""

    NODE = auto()
    """`check`, `diff` and `run`: the setting concerns the node or the source of objects."""

    RUN = auto()
    """`run` only."""


RULES = Scope.RULES
NODE = Scope.NODE
RUN = Scope.RUN


class Section(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A mapping in the file. Times are seconds here, Go durations there."""


class Setting(msgspec.Struct, frozen=True):
    """The properties of a setting, declared at its field of the schema.

    `flag` is the name without dashes; empty: only the file has the setting. Fields that share a flag are set
    together; the first of them describes the flag. `scope` determines which commands have it. `group` is the
    heading of `--help`; None: that of the section. `metavar` replaces the name of the value that follows from
    the type. `short` is a one-letter name of the flag. A `live` setting takes effect without a restart. A
    setting without `effect` is accepted and ignored. `with_file`: the flag counts although --config is set;
    flags of kproxy's own document always do. `empty_is_unset`: the flag's empty value leaves the setting as
    it is. `replaced_by` names the flag that made this one obsolete.
    """

    flag: str
    help: str
    scope: Scope = Scope.RUN
    group: Group | None = None
    metavar: str = ""
    short: str = ""
    live: bool = False
    effect: bool = True
    with_file: bool = False
    empty_is_unset: bool = False
    replaced_by: str = ""

    @property
    def attribute(self) -> str:
        """The flag as an identifier: the field of ProxyConfig that takes the value, if there is one."""
        return self.flag.replace("-", "_")


def live(flag: str, text: str, scope: Scope = Scope.RUN, metavar: str = "", **others: Any) -> Setting:
    """A setting that takes effect without a restart."""
    return Setting(flag, text, scope, metavar=metavar, live=True, **others)


def restart(flag: str, text: str, scope: Scope = Scope.RUN, metavar: str = "", **others: Any) -> Setting:
    """A setting that a running process does not change."""
    return Setting(flag, text, scope, metavar=metavar, **others)


def ignored(flag: str = "", metavar: str = "", *, with_file: bool = False) -> Setting:
    """A setting of kube-proxy that has no effect here."""
    return Setting(
        flag,
        "Accepted for compatibility; ignored.",
        group=Group.IGNORED,
        metavar=metavar,
        effect=False,
        with_file=with_file,
    )
