"""Fixtures of the scenarios: the host with real tiers."""

from tests.gpu_actions.conftest import site_with

__all__ = ["site_with"]
