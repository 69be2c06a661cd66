"""An IP set that exists only for a trial, under a name of kproxy's own."""

from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetError, SetSpec
from kproxy.modes.rule_features import TRIAL


def create_set(spec: SetSpec) -> str:
    """Create the set; return why it could not be, or "" if it was."""
    try:
        NetlinkIpset().create(spec)
    except IpsetError as error:
        return str(error)
    return ""


def destroy_set() -> str:
    """Destroy the set; return why it could not be, or "" if it was."""
    try:
        NetlinkIpset().destroy(TRIAL)
    except IpsetError as error:
        return str(error)
    return ""
