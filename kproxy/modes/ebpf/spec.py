"""The eBPF mode as the registry lists it: the nftables mode, and the socket table in front of it."""

import structlog

from kproxy.config.model import ProxyConfig
from kproxy.config.modes import traits_of
from kproxy.kernel.bpf.pins import mount_bpffs
from kproxy.kernel.bpf.types import BpfError
from kproxy.kernel.nft.netlink import NetlinkNft
from kproxy.kernel.processes import Runner
from kproxy.modes.base import Mode, ModeSpec
from kproxy.modes.ebpf.cleanup import PinLeftovers
from kproxy.modes.ebpf.explain import SocketReader, facts
from kproxy.modes.ebpf.kernel import table_settings
from kproxy.modes.ebpf.mode import EbpfMode
from kproxy.modes.ebpf.preflight import check
from kproxy.modes.ebpf.preview import preview, preview_leftovers, render
from kproxy.modes.nftables.spec import SPEC as TABLE

log = structlog.stdlib.get_logger(__name__)


def _make(config: ProxyConfig, _runner: Runner) -> Mode:
    return EbpfMode(config, NetlinkNft())


def _prepare(config: ProxyConfig) -> None:
    """Mount a bpffs where pins are to be and none is: it takes more than a running kproxy may do."""
    directory = table_settings(config).pins.parent
    if not directory.is_dir():
        return
    try:
        mount_bpffs(directory)
    except BpfError as error:
        log.warning("bpffs_not_mounted", directory=str(directory), reason=error.message)


SPEC = ModeSpec(
    traits=traits_of("ebpf"),
    written=f"a socket table with TCP cluster IPs; {TABLE.written}",
    taken_away=f"the socket table; {TABLE.taken_away}",
    taken_away_beside="the socket table",
    metrics=TABLE.metrics | {"kproxy_ebpf_socket_table", "kproxy_ebpf_frontends"},
    make=_make,
    set_sysctls=_prepare,
    sysctls=TABLE.sysctls,
    render=render,
    preview=preview,
    leftovers=PinLeftovers,
    preview_leftovers=preview_leftovers,
    check=check,
    rule_reader=SocketReader,
    explain_facts=facts,
)
