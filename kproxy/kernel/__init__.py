"""The only kernel I/O of kproxy: rules, accounting objects, sysctls, links."""
