"""Fallback: carry the service from the tensor-parallel tier to one healthy GPU, with the evidence saved first."""
