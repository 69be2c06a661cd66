"""Measurements of kproxy; see README.md in this folder for how to run them."""
