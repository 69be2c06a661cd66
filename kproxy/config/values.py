"""The kinds of values of settings: reading, printing and checking.

A field of the schema has these in its annotation, so that one declaration is complete.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

from kproxy.addresses import parse_cidr, parse_ip
from kproxy.config.durations import format_duration, parse_duration
from kproxy.plan.schedulers import parse_scheduler

PRIMARY = "primary"
"""The value of --nodeport-addresses for the node's own primary addresses."""

TIMEOUT_MAX = (1 << 31) // 1000
"""Upper bound of IPVS timeouts in seconds: INT_MAX jiffies at the usual HZ of 1000 (ip_vs_ctl.c)."""

LONGEST_INTERFACE = 15
"""The maximum length of an interface's name (IFNAMSIZ is 16 with the terminating zero)."""

_INTERFACE = re.compile(rf"[A-Za-z0-9_.@-]{{1,{LONGEST_INTERFACE}}}")


class Reader(NamedTuple):
    """Reads a plain YAML value, raising ValueError with the reason, and converts it back.

    `metavar` names the value in `--help`. A flag's value is read as text unless it is `numeric`.
    """

    read: Callable[[object], Any]
    print: Callable[[Any], object]
    metavar: str
    numeric: bool = False


class Check(NamedTuple):
    """Raises ValueError with the reason if a value is invalid; `words` lists the allowed words, if any."""

    check: Callable[[Any], None]
    words: tuple[str, ...] = ()


class PathOf(NamedTuple):
    """Marks text that is the path of a file or a directory."""

    directory: bool


class EmptyIsDefault:
    """The empty value (0, "") stands for the default, as in Kubernetes' defaulting."""


class EmptyIsNotWritten:
    """A document that is written has the setting only if it is not empty."""


def _duration(value: object) -> float:
    if not isinstance(value, str):
        raise ValueError("is not a duration such as 30s, in quotes if need be")  # noqa: TRY004
    return parse_duration(value)


def _flush_frequency(value: object) -> float:
    """Text or a number of nanoseconds (TimeOrMetaDuration of k8s.io/component-base)."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value / 1e9
    return _duration(value)


_QUANTITY = re.compile(r"\d+(?:\.\d*)?(?:[numkMGTPE]|[KMGTPE]i|[eE][-+]?\d+)?", re.ASCII)


def _quantity(value: object) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or _QUANTITY.fullmatch(value) is None:
        raise ValueError("is not a quantity such as 0 or 512Ki")
    return value


_EXPONENT = re.compile(r"[-+]?\d+[eE][-+]?\d+", re.ASCII)
"""A number such as 1e+06, as Go prints large ones; YAML 1.1 reads it as text."""


def _number(value: object) -> float:
    if isinstance(value, str) and _EXPONENT.fullmatch(value):
        return float(value)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError("is not a number")  # noqa: TRY004
    return float(value)


def _same(value: object) -> object:
    return value


def within(low: int, high: int) -> Check:
    """A number in a closed range."""

    def check(value: float) -> None:
        if not low <= value <= high:
            raise ValueError(f"is not within {low} and {high}")

    return Check(check)


def one_of(*names: str) -> Check:
    """One of these words."""

    def check(value: str) -> None:
        if value not in names:
            raise ValueError(f"is not one of {', '.join(filter(None, names))}")

    return Check(check, names)


def _positive(value: float) -> None:
    if value <= 0:
        raise ValueError("is not greater than 0")


def _not_negative(value: float) -> None:
    if value < 0:
        raise ValueError("is negative")


def _kernel_timeout(value: float) -> None:
    if value and not 1 <= value <= TIMEOUT_MAX:
        raise ValueError(f"is not 0 (leave as it is) or 1s to {TIMEOUT_MAX}s")


def check_cidr(value: str) -> None:
    """One CIDR of either family."""
    try:
        parse_cidr(value)
    except ValueError as error:
        detail = str(error)
        raise ValueError(f"is {detail}" if detail.startswith("not ") else f"is no CIDR: {detail}") from None


def _cluster_cidrs(value: str) -> None:
    """At most one CIDR of each family (kube-proxy's validation)."""
    families = []
    for part in filter(None, value.split(",")):
        check_cidr(part.strip())
        families.append(parse_cidr(part.strip())[0])
    if len(families) != len(set(families)):
        raise ValueError("has more than one CIDR of a family")


def _node_ports(value: str) -> None:
    if value != PRIMARY:
        check_cidr(value)


def _absolute(value: str) -> None:
    if value and not value.startswith("/"):
        raise ValueError("is not an absolute path")


def _pins(value: str) -> None:
    """The directory is removed with everything in it, so that it must not be a file system's root.

    A bpffs refuses names with dots (kernel/bpf/inode.c).
    """
    _absolute(value)
    parts = value.strip("/").split("/")
    if len(parts) < 2:
        raise ValueError("is not a directory of its own, such as /sys/fs/bpf/kproxy")
    if "." in parts[-1]:
        raise ValueError("has a dot in its last name, which a bpffs refuses")


def _node_name(value: str) -> None:
    """Empty stands for the host's name; blanks do not (processHostnameOverrideFlag of kube-proxy)."""
    if value and not value.strip():
        raise ValueError("is blank")


def _address(value: str) -> None:
    try:
        parse_ip(value)
    except ValueError:
        raise ValueError("is not an IP address") from None


def host_port(value: str, default_port: int) -> str:
    """`0.0.0.0:10256` or `[::]:10256`; an address alone gets the default port. Raises ValueError."""
    try:
        return f"[{value}]:{default_port}" if ":" in _plain_ip(value) else f"{value}:{default_port}"
    except ValueError:
        host, colon, port = value.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65535):
        raise ValueError("is not IP:port")
    try:
        is_six = ":" in _plain_ip(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        raise ValueError("is not IP:port") from None
    if is_six != host.startswith("["):
        raise ValueError("is not IP:port (an IPv6 address goes in brackets)")
    return value


def _plain_ip(text: str) -> str:
    if "%" in text:
        raise ValueError("has a zone")
    return str(ipaddress.ip_address(text))


def _listener(default_port: int) -> Reader:
    def read(value: object) -> str:
        if not isinstance(value, str):
            raise ValueError("is not text")  # noqa: TRY004
        return host_port(value, default_port) if value else value

    return Reader(read, _same, "IP:PORT")


def _scheduler(value: str) -> None:
    try:
        parse_scheduler(value)
    except ValueError as error:
        raise ValueError(
            f"is {error}" if str(error).startswith("not ") else f"is unusable: {error}"
        ) from None


def is_interface(name: str) -> bool:
    """Whether `name` is valid as the name of a network interface."""
    return _INTERFACE.fullmatch(name) is not None


_DURATION = Reader(_duration, format_duration, "DURATION")

Period = Annotated[float, _DURATION, Check(_positive), EmptyIsDefault()]
MinPeriod = Annotated[float, _DURATION, Check(_not_negative), EmptyIsDefault()]
NotNegativeDuration = Annotated[float, _DURATION, Check(_not_negative)]
KernelTimeout = Annotated[float, _DURATION, Check(_kernel_timeout)]
FlushFrequency = Annotated[float, Reader(_flush_frequency, format_duration, "DURATION"), Check(_not_negative)]
Quantity = Annotated[str, Reader(_quantity, _same, "QUANTITY")]
Bit = Annotated[int, within(0, 31)]
Count = Annotated[int, Check(_not_negative)]
Bound = Annotated[int, within(1, 100_000_000)]
Rate = Annotated[float, Reader(_number, _same, "N", numeric=True), EmptyIsDefault()]
Burst = Annotated[int, Check(_not_negative), EmptyIsDefault()]
FilePath = Annotated[str, PathOf(directory=False)]
DirectoryPath = Annotated[str, PathOf(directory=True)]
CgroupPath = Annotated[str, PathOf(directory=True), Check(_absolute)]
PinPath = Annotated[str, PathOf(directory=True), Check(_pins)]
Cidr = Annotated[str, Check(check_cidr)]
ClusterCidrs = Annotated[str, Check(_cluster_cidrs)]
NodePortRange = Annotated[str, Check(_node_ports)]
NodeName = Annotated[str, Check(_node_name)]
Address = Annotated[str, Check(_address), EmptyIsDefault()]
HealthzAddress = Annotated[str, _listener(10256), EmptyIsDefault()]
MetricsAddress = Annotated[str, _listener(10249), EmptyIsDefault()]
SchedulerName = Annotated[str, Check(_scheduler), EmptyIsDefault()]
