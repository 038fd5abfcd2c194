"""Forensics: the evidence of a host in one file, taken within seconds and before anything is stopped."""
