"""Tests of kproxy_lab."""
