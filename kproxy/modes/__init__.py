"""The proxy modes: probing the kernel, building the backends, removing leftovers."""
