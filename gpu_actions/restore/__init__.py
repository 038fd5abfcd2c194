"""Plan or start the return of the full tier (start needs --local)."""
