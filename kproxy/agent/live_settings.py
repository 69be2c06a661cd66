"""Pass the settings of a reload to every component that uses them."""

from kproxy import logs
from kproxy.agent.loop import Agent
from kproxy.agent.policy.control import PolicyControl
from kproxy.agent.signals import Leaving
from kproxy.agent.source_factory import ObjectSource
from kproxy.config.model import ProxyConfig
from kproxy.node.setup import set_conntrack, set_oom_score


class LiveSettings:
    """Remembers the settings in force, so that only what changed is set again."""

    def __init__(
        self,
        config: ProxyConfig,
        agent: Agent,
        objects: ObjectSource,
        leaving: Leaving,
        policies: PolicyControl,
    ) -> None:
        self._config = config
        self._agent = agent
        self._objects = objects
        self._leaving = leaving
        self._policies = policies

    def take(self, config: ProxyConfig) -> int:
        """Apply the settings; return the revision by which the run loop reports about them.

        Raises SettingRefused, with nothing changed.
        """
        self._policies.follow(config)
        old, self._config = self._config, config
        logs.configure(config.verbosity, config.logging_format, config.limit_log_lines_per_minute)
        if config.conntrack != old.conntrack:
            set_conntrack(config.conntrack)
        if config.oom_score_adj != old.oom_score_adj:
            set_oom_score(config.oom_score_adj)
        self._leaving.configure(cleanup_on_exit=config.cleanup_on_exit)
        self._objects.follow(config)
        return self._agent.reconfigure(config)
