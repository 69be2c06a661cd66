"""Fakes of kernel interfaces, fault injection and helpers that several test folders share."""
