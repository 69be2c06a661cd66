"""The kernel interfaces of the IPVS mode."""

from kproxy.backends.ipvs.handles import KernelHandles
from kproxy.backends.ipvs.names import DEVICE
from kproxy.kernel.dummy import DummyDevice
from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipvs.netlink import NetlinkIpvs


def ipvs_handles() -> KernelHandles:
    """The handles of the IPVS mode; each is opened when it is first used."""
    return KernelHandles(NetlinkIpvs(), NetlinkIpset(), DummyDevice(DEVICE))
