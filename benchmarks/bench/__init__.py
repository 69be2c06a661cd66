"""`kproxy bench`: any service proxy, timed from outside, on the same objects and the same kernel."""
