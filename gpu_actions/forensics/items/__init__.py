"""Kinds of evidence, one file each. `gpu_actions/forensics/registry.py` lists them."""
