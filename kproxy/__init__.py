"""A Kubernetes service proxy that runs on every node in place of kube-proxy."""

__version__ = "0.1.0"
