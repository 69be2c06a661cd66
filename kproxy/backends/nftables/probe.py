"""Probe whether this kernel supports the nftables mode, before anything is written."""

from kproxy.backends.core.hashes import digest
from kproxy.backends.nftables import names
from kproxy.backends.nftables.affinity import Target, sticky
from kproxy.backends.nftables.chains import OwnList, firewall, own, pick
from kproxy.backends.nftables.config import NftablesConfig
from kproxy.backends.nftables.script import Script
from kproxy.kernel.nft.types import Nft
from kproxy.plan.model import Protocol


def probe(nft: Nft, config: NftablesConfig) -> None:
    """Make the whole layout in a table of its own, and delete it in the same transaction. Raises NftError."""
    ip = "192.0.2.1" if config.ip == "ip" else "2001:db8::1"
    script = Script(config, table=f"{names.TABLE}-probe")
    script.declare(config)
    script.base(config)
    hashed = digest("probe")
    listed = OwnList((1, 2), 2, 0)
    target = Target(ip, 80, 1, 1)
    protocol = names.PROTOCOL_NUMBERS[Protocol.TCP]
    script.chains(
        dict(
            [
                pick(config.family, 2, 0),
                pick(config.family, 2, 0, local=True),
                firewall(config.family, hashed),
                ("own", own(config.family, protocol, listed, [False, True])),
                ("sticky", sticky(config.family, hashed, protocol, [target, target], 60, [2])),
            ]
        )
    )
    script.add_elements(names.SERVICES, {f"{ip} . 6 . 80": f"goto firewall-{hashed}"})
    script.add_elements(names.ENDPOINT_0, {f"{ip} . 6 . 80": f"{ip} . 80"})
    script.add_elements(names.slots(listed.part), {listed.key(1): f"{ip} . 80"})
    script.add_elements(names.ranges(hashed), {f"{ip}": ""})
    script.remove_table()
    nft.commit(script.transaction())
