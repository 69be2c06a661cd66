"""The settings that the run loop works towards."""

import msgspec

from kproxy.config.model import ProxyConfig


class Desired(msgspec.Struct, frozen=True):
    """The requested settings; each `revision` is greater than the one before."""

    revision: int
    config: ProxyConfig
