"""Tests of kproxy.kernel."""
