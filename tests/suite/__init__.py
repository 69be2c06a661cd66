"""Runs the suite: plugins of pytest that the root conftest registers, and the program behind `make test`.

`python -m tests.suite [ARGUMENT...]` runs pytest, reruns the few tests that failed by themselves, and exits
with 0 only if every test was run and passed.
"""
