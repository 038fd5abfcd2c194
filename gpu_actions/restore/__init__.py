"""Restore: bring the tensor-parallel tier back beside the fallback, prove it, and shift the traffic in watched stages."""
