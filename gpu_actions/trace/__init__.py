"""Trace: capture a profile of the live engine and tabulate its kernels."""
