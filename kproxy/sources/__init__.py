"""Sources of objects: the Kubernetes API or a directory of manifests; both are independent of rules."""
