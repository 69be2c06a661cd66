"""Equipment of this repository; never in the wheel."""
