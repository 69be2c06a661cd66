"""Backends: each brings one family of one proxy mode into the kernel."""
