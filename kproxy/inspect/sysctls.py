"""Every kernel parameter that kproxy sets or depends on, with its desired and its current value.

`kproxy check` reports deviations; `kproxy diff` shows which of them a start would change. The code that sets
them is in node/setup.py and in the modes.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import msgspec

from kproxy.addresses import Family
from kproxy.config.model import ProxyConfig
from kproxy.kernel import sysctl
from kproxy.modes.base import ModeSpec, RequiredSysctl
from kproxy.node.setup import CONNTRACK_MAX, HASH_SIZE, conntrack_max, conntrack_sysctls

FORWARDING = {Family.IPV4: "net/ipv4/ip_forward", Family.IPV6: "net/ipv6/conf/all/forwarding"}
BRIDGED = {
    Family.IPV4: "net/bridge/bridge-nf-call-iptables",
    Family.IPV6: "net/bridge/bridge-nf-call-ip6tables",
}
_PROC_SYS = Path("/proc/sys")
_SYS = Path("/sys")


class Sysctl(msgspec.Struct, frozen=True):
    """A kernel parameter: its desired and current value (None: there is none), and whether kproxy sets it.

    `effect` is its purpose. `sets`: kproxy sets it. `essential`: kproxy exits if it cannot. `more_will_do`: a
    greater value that cannot be changed is sufficient. `module`: the kernel module that provides it. `name`
    is the name below /proc/sys; for one below /sys, the whole path.
    """

    name: str
    wanted: str
    now: str | None
    writable: bool
    effect: str
    sets: bool = True
    essential: bool = False
    more_will_do: bool = False
    module: str = ""

    @property
    def right(self) -> bool:
        """Whether the current value is sufficient."""
        if self.now == self.wanted:
            return True
        is_more = (self.now or "").isdecimal() and int(self.now or 0) >= int(self.wanted)
        return self.more_will_do and not self.writable and is_more

    @property
    def command(self) -> str:
        """The command by which an operator sets it."""
        if self.name.startswith("/"):
            return f"echo {self.wanted} > {self.name}"
        set_it = f"sysctl -w {self.name.replace('/', '.')}={self.wanted}"
        return f"modprobe {self.module}; {set_it}" if self.module and self.now is None else set_it

    @property
    def deviation(self) -> str:
        """The difference between the current and the desired value."""
        return "does not exist" if self.now is None else f"is {self.now}, not {self.wanted}"


def current_sysctls(
    config: ProxyConfig,
    families: Collection[Family],
    mode: ModeSpec,
    *,
    localhost: bool,
    proc: Path = _PROC_SYS,
    sys: Path = _SYS,
    cores: int | None = None,
) -> tuple[Sysctl, ...]:
    """All parameters that the settings need, with current values; `localhost`: node ports use 127.0.0.1.

    `cores` None: the number of cores of this machine; `proc` and `sys` replace /proc/sys and /sys.
    """
    cores = cores or os.cpu_count() or 1
    found = [
        msgspec.structs.replace(each, now=_value(each.name, proc), writable=_writable(each.name, proc))
        for each in _wanted(config, families, mode.sysctls(config, localhost), cores)
    ]
    bridges = config.detect_local_mode == "BridgeInterface"
    there = [each for each in found if each.now is not None or not each.module or bridges]
    return (*there, *_table_size(config, cores, sys))


def _wanted(
    config: ProxyConfig, families: Collection[Family], own: Iterable[RequiredSysctl], cores: int
) -> Iterator[Sysctl]:
    """The desired values, before the kernel is read; `own` are those of the mode."""
    set_by_mode = set()
    for each in own:
        set_by_mode.add(each.name)
        yield Sysctl(
            each.name, each.value, None, writable=False, effect=each.effect, essential=each.essential
        )
    for name, value in conntrack_sysctls(config.conntrack, cores):
        effect = "connections are tracked as `conntrack` asks for"
        yield Sysctl(
            name, str(value), None, writable=False, effect=effect, more_will_do=name == CONNTRACK_MAX
        )
    for family in families:
        if FORWARDING[family] not in set_by_mode:
            effect = f"{family} packets are forwarded"
            yield Sysctl(FORWARDING[family], "1", None, writable=False, effect=effect, sets=False)
        effect = "traffic between pods of one bridge passes the rules"
        yield Sysctl(
            BRIDGED[family], "1", None, writable=False, effect=effect, sets=False, module="br_netfilter"
        )


def _table_size(config: ProxyConfig, cores: int, root: Path) -> Iterator[Sysctl]:
    limit = conntrack_max(config.conntrack, cores)
    now = _value(HASH_SIZE, root)
    if limit is not None and now is not None and int(now) < limit // 4:
        yield Sysctl(
            str(_SYS / HASH_SIZE),
            str(limit // 4),
            now,
            writable=_writable(HASH_SIZE, root),
            effect="looking up one of so many connections stays quick",
        )


def _value(name: str, root: Path) -> str | None:
    try:
        return sysctl.read(name, root)
    except sysctl.SysctlError:
        return None


def _writable(name: str, root: Path) -> bool:
    return os.access(sysctl.path(name, root), os.W_OK)
