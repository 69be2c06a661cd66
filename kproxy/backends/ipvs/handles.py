"""The parts of the kernel that the IPVS mode works on, and how each says that it did not answer.

They go together: whoever reads or changes one of them must be ready for any of them to fail.
"""

import msgspec

from kproxy.kernel.addresses import AddressDevice, DeviceError
from kproxy.kernel.ipset.types import Ipset, IpsetError
from kproxy.kernel.ipvs.types import Ipvs, IpvsError

KERNEL_ERRORS = (IpvsError, IpsetError, DeviceError)
"""What the three parts of the kernel raise when they do not answer as they should."""


class KernelHandles(msgspec.Struct, frozen=True):
    """The three parts of the kernel that the mode works on."""

    ipvs: Ipvs
    ipset: Ipset
    device: AddressDevice
