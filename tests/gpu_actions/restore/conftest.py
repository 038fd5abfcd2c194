"""The fallback's hosts, for tests of the restore."""

from tests.gpu_actions.fallback.conftest import MakeSite, site_with

__all__ = ["MakeSite", "site_with"]
