"""Save the evidence of this host in one bundle (start needs --local)."""
