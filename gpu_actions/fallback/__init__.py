"""Fallback: bring serving back on one healthy GPU, evidence first."""
