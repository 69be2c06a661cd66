"""The addresses of one interface as values, and what can be asked of a kernel about them."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from kproxy.addresses import Family


class DeviceError(Exception):
    """The device or its addresses could not be read or changed, or it is not known what was."""


class DeviceMissing(DeviceError):
    """There is no device of this name (any more)."""


class AddressDevice(Protocol):
    """A device of type dummy that holds addresses and never carries a packet."""

    name: str

    def ensure(self) -> bool:
        """Create the device if there is none; True if it was created.

        Raises DeviceError, also where an interface of another type has the name.
        """

    def delete(self) -> None:
        """Delete the device with its addresses; one that does not exist is no error. Raises DeviceError."""

    def addresses(self, family: Family) -> frozenset[str]:
        """Its addresses of a family, without IPv6 link-local ones; none without the device."""

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add host addresses (/32, /128); the errno of each refused one. An address that is there is done.

        Raises DeviceMissing without the device, and DeviceError if the outcome of any is unknown.
        """

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove addresses; the errno of each refused one. An address that is not there is done."""
