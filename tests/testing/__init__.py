"""Tests of kproxy.testing."""
