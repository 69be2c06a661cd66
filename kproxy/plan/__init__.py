"""Every policy question of Kubernetes, answered once for all backends. Pure: values in, values out."""
