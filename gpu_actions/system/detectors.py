"""The token formats of detect-secrets (https://github.com/Yelp/detect-secrets), applied after our own rules.

Only detectors of a fixed format in linear time are used. Its keyword and entropy detectors would remove hashes, UUIDs and
paths, which an engineer needs. It is imported at the first text that may hold such a token: 2 MB of memory in the bot, 50 ms.
"""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

from gpu_actions.system.stand_ins import absent

_DETECTORS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("azure_storage_key", "AzureStorageKeyDetector", ("AccountKey=",)),
    ("github_token", "GitHubTokenDetector", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_")),
    ("gitlab_token", "GitLabTokenDetector", ("GR1348941", "glimt-")),
    ("mailchimp", "MailchimpDetector", ("-us",)),
    ("openai", "OpenAIDetector", ("T3BlbkFJ",)),
    ("pypi_token", "PypiTokenDetector", ("pypi-",)),
    ("sendgrid", "SendGridDetector", ("SG.",)),
    ("slack", "SlackDetector", ("xox", "hooks.slack.com")),
    ("square_oauth", "SquareOAuthDetector", ("sq0csp-",)),
    ("stripe", "StripeDetector", ("_live_",)),
    ("telegram_token", "TelegramBotTokenDetector", (":AA",)),
    ("twilio", "TwilioKeyDetector", ("AC", "SK")),
    ("discord", "DiscordBotTokenDetector", ("M", "N", "O")),
)
"""Module, class, and texts: every such token contains one of them, so a text without them costs nothing."""


@cache
def _detector(module: str, name: str) -> Any:
    # The library imports requests, 4 MB, to ask the issuer of a token whether it is valid, which we never do.
    with absent("requests", "requests.exceptions"):
        return getattr(import_module(f"detect_secrets.plugins.{module}"), name)()


def load() -> None:
    """Import every detector now: a process that forks others shares them."""
    for module, name, _ in _DETECTORS:
        _detector(module, name)


def library_findings(text: str) -> Iterator[tuple[str, str]]:
    """Yield the kind and the text of each secret that a detector finds."""
    for module, name, words in _DETECTORS:
        if any(word in text for word in words):
            for secret in set(_detector(module, name).analyze_string(text)):
                if secret and "[redacted" not in secret:
                    yield module, secret
