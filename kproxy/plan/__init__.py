"""The policy decisions of Kubernetes, made once for all backends. Pure: no I/O and no mutable input."""
