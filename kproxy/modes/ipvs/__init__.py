"""The IPVS mode: the running mode, its teardown, its preview and checks."""
