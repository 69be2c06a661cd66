"""An IP set that exists only during a probe, under a name that only kproxy uses."""

from kproxy.kernel.ipset.netlink import NetlinkIpset
from kproxy.kernel.ipset.types import IpsetError, SetSpec
from kproxy.modes.rule_features import PROBE_NAME


def create_set(spec: SetSpec) -> str:
    """Create the set; return the error text, "" on success."""
    try:
        NetlinkIpset().create(spec)
    except IpsetError as error:
        return str(error)
    return ""


def destroy_set() -> str:
    """Destroy the set; return the error text, "" on success."""
    try:
        NetlinkIpset().destroy(PROBE_NAME)
    except IpsetError as error:
        return str(error)
    return ""
