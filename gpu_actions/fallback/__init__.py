"""Plan or start the fallback to one GPU (start needs --local)."""
