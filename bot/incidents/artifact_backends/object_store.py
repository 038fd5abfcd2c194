"""Buckets: `s3://bucket/prefix`, `gs://`, `az://`. Through fsspec by `obstore`, which needs no SDK of the provider.

Keys come from the process's environment as usual (`AWS_ACCESS_KEY_ID`, ..., or the machine's role). Another S3 server:
`artifacts.endpoint`.
"""

from datetime import timedelta
from typing import Any

from bot.incidents.artifact_backends.fsspec_url import FsspecBackend

SCHEMES = ("s3", "gs", "az")
REQUEST_TIMEOUT = "60s"
RETRIES = 2
RETRY_FOR = timedelta(seconds=30)
"""Short: an upload that fails is tried again later anyway."""


class ObjectStoreBackend(FsspecBackend):
    @staticmethod
    def accepts(url: str) -> bool:
        return url.partition("://")[0] in SCHEMES

    def _options(self) -> dict[str, Any]:
        from obstore.fsspec import register

        register(list(SCHEMES))
        return {
            "config": {"aws_endpoint": self._endpoint} if self._endpoint else {},
            "client_options": {
                "timeout": REQUEST_TIMEOUT,
                "allow_http": self._endpoint.startswith("http://"),
            },
            "retry_config": {"max_retries": RETRIES, "retry_timeout": RETRY_FOR},
        }
