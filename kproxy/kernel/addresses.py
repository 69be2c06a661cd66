"""The interface of a device that holds addresses, and its errors."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from kproxy.addresses import Family


class DeviceError(Exception):
    """The device or its addresses could not be read or changed, or the outcome is unknown."""


class DeviceMissing(DeviceError):
    """The device does not exist (any more)."""


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
        """Its addresses of a family, without IPv6 link-local ones; empty if there is no device."""

    def add(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Add host addresses (/32, /128); return the errno of each refused one. Existing ones are no error.

        Raises DeviceMissing if there is no device, and DeviceError if the outcome of any is unknown.
        """

    def remove(self, wanted: Iterable[str]) -> Mapping[str, int]:
        """Remove addresses; return the errno of each refused one. Missing ones are no error."""
