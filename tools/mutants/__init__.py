"""Plant one-line faults in kproxy and count how many of them the tests notice (`make mutants`)."""
