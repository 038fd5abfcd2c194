"""The hosts of the fallback's tests, for faults that are made on them."""

from tests.gpu_actions.conftest import MakeSite, site_with

__all__ = ["MakeSite", "site_with"]
