"""The iptables mode of one family."""

import time
from collections.abc import Callable

from kproxy.backends.core.foreign_writes import ForeignWrites
from kproxy.backends.core.service_reconciler import ServiceReconciler
from kproxy.backends.iptables.layout import Layout
from kproxy.backends.iptables.rule_set import RuleSet
from kproxy.kernel.xtables.types import Xtables


class IptablesBackend(ServiceReconciler[RuleSet]):
    """One family's KUBE-* rules; for `larger` and `prepare` see RuleSet."""

    def __init__(
        self,
        layout: Layout,
        xtables: Xtables,
        watch: ForeignWrites,
        *,
        larger: Layout | None = None,
        batch_size: int | None = None,
        prepare: Callable[[bool], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        rules = RuleSet(
            layout, xtables, watch, larger=larger, batch_size=batch_size, prepare=prepare, clock=clock
        )
        super().__init__(layout.family, rules, clock)

    def reconfigure(self, layout: Layout, larger: Layout | None = None) -> None:
        """Change to other layouts of the same family; the next sync writes the differences."""
        if self.operations.use_layout(layout, larger):
            self.invalidate()
            self.replan()

    def rules(self) -> dict[str, int]:
        """Number of kproxy's rules in the applied state, by table. May be called from any thread."""
        return self.operations.rules()
