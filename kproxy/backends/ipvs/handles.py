"""The kernel interfaces that the IPVS mode works on, and their errors.

They are used together, so a caller has to handle the errors of all of them.
"""

import msgspec

from kproxy.kernel.addresses import AddressDevice, DeviceError
from kproxy.kernel.ipset.types import Ipset, IpsetError
from kproxy.kernel.ipvs.types import Ipvs, IpvsError

KERNEL_ERRORS = (IpvsError, IpsetError, DeviceError)
"""The errors that the three kernel interfaces raise."""


class KernelHandles(msgspec.Struct, frozen=True):
    """The three kernel interfaces of the mode."""

    ipvs: Ipvs
    ipset: Ipset
    device: AddressDevice
