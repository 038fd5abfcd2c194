"""Forensics: bounded captures of a failing tier, with a manifest."""
