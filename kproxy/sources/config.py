"""Every duration and limit of the Kubernetes source."""

from dataclasses import dataclass, field

from kproxy.sources.transport import TransportConfig


@dataclass(frozen=True, slots=True)
class KubernetesSourceConfig:
    """Times in seconds, sizes in bytes."""

    page_size: int = 500
    """Objects in one page of a list, as client-go's reflector asks."""
    page_bytes: int = 512 * 1024 * 1024
    """The largest page that is read (etcd's limit is 1.5 MB per object)."""
    page_seconds: float = 120.0
    """The longest time for one page; an API server gives up after 60 s itself."""
    streamed_list: bool = True
    """Ask for streamed lists (KEP-3157) before falling back to pages."""
    streamed_list_idle_seconds: float = 3.0
    """Silence within a streamed list after which the server counts as one without streamed lists.

    A server with streamed lists answers as soon as its cache is as new as etcd, which it checks every 0.1 s;
    a wrong decision costs a list in pages.
    """
    streamed_list_seconds: float = 120.0
    """The longest time for a streamed list; after it, pages are requested instead."""
    streamed_list_attempts: int = 3
    """Consecutive streamed lists that may break before a list in pages is tried."""
    streamed_list_retry_seconds: float = 3600.0
    """The time until a streamed list is requested again from a server that refused one."""
    watch_min_seconds: int = 300
    watch_max_seconds: int = 600
    """Bounds of the random `timeoutSeconds` of a watch, so that a fleet does not reconnect at once."""
    inactivity_seconds: float = 70.0
    """Silence after which a connection is taken to be half-open; bookmarks come about once a minute."""
    event_bytes: int = 32 * 1024 * 1024
    """The largest event."""
    steady_seconds: float = 5.0
    """A connection that lived this long ends a series of failures."""
    backoff_seconds: float = 0.8
    """The first retry comes after a random part of this, the next after a random part of twice this, ..."""
    backoff_max_seconds: float = 30.0
    """The longest backoff; both are those of client-go's reflector."""
    unreachable_max_seconds: float = 3.0
    """The longest backoff if no API server was reached, which adds no load to one."""
    unavailable_retry_seconds: float = 300.0
    """The time until an optional kind that the server does not have or refuses is requested again.

    Kinds of NetworkPolicies have the backoff instead: without them pods may be open.
    """
    stop_seconds: float = 2.0
    """How long a stop waits for a thread that cannot be interrupted (TCP handshake, exec plugin)."""
    transport: TransportConfig = field(default_factory=TransportConfig)
