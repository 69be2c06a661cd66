"""Tests of kproxy.plan."""
