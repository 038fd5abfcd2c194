"""The host fixtures of the fallback tests, which the chaos tests share."""

from tests.gpu_actions.conftest import MakeSite, site_with

__all__ = ["MakeSite", "site_with"]
