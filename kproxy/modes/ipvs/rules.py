"""The writer of the iptables rules around virtual servers: the iptables rule set in the IPVS layout.

The IPVS backend takes it as operations, so that it does not know the iptables backend.
"""

from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.iptables.config import IptablesConfig
from kproxy.backends.iptables.rule_set import RuleSet
from kproxy.backends.ipvs.config import RuleSettings
from kproxy.kernel.xtables.types import Xtables
from kproxy.modes.iptables_rules import preparation
from kproxy.modes.ipvs.layout import IpvsLayout


class IpvsRules(RuleSet):
    """One family's rules. `settings` are an IptablesConfig, which the IPVS backend only passes on."""

    def __init__(self, settings: RuleSettings, xtables: Xtables, watch: ForeignWrites) -> None:
        layout = layout_of(settings)
        prepare = preparation(layout, xtables, lambda _: None)
        super().__init__(layout, xtables, watch, prepare=prepare)

    def use_settings(self, settings: RuleSettings) -> bool:
        """Change to other settings of the same family; False if they are equal."""
        return self.use_layout(layout_of(settings))


def layout_of(settings: RuleSettings) -> IpvsLayout:
    """The layout of the rules for these settings."""
    assert isinstance(settings, IptablesConfig)  # noqa: S101 - the mode makes them
    return IpvsLayout(settings)
