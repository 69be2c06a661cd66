"""Tests of kproxy.backends."""
