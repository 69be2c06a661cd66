"""Commands that look and do not change: diff, render, check."""
