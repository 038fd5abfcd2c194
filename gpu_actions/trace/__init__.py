"""Profile the live engine and tabulate its kernels (start needs --local)."""
