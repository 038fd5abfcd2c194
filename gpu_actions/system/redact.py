"""Redact secrets from texts that leave the host: known token formats, and assignments such as KEY= or TOKEN=.

Covers Slack, OpenAI, AWS, Hugging Face and GitHub tokens, bearer headers, PEM keys and user:password in URLs. The kind of the
secret stays in its place, so a reader sees that one was removed.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

_COUNT = r"(?![\"']?\s{0,4}[=:]\s{0,4}[\d.]+\b)"
"""A serving log is full of token counts; a number behind that name is not a secret."""

_NAME = rf"(?:keys?|tokens{_COUNT}|token|secrets?|passwords?|passwd|credentials?)"
_VALUE = r"(?:\"(?:[^\"\\]|\\.)*\"|'[^']*'|[\"']?[^\s\"',;&]+)"

_RULES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    (
        "pem",
        re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.S),
        "[redacted:pem]",
    ),
    ("slack", re.compile(r"\bxox[abeprs]-[A-Za-z0-9-]{6,}"), "[redacted:slack]"),
    ("slack_app", re.compile(r"\bxapp-[A-Za-z0-9-]{6,}"), "[redacted:slack_app]"),
    ("openai", re.compile(r"\bsk-[A-Za-z0-9_-]{8,}"), "[redacted:openai]"),
    ("aws", re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}"), "[redacted:aws]"),
    ("huggingface", re.compile(r"\bhf_[A-Za-z0-9]{8,}"), "[redacted:huggingface]"),
    (
        "github",
        re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{8,}|github_pat_[A-Za-z0-9_]{8,})"),
        "[redacted:github]",
    ),
    (
        "bearer",
        re.compile(r"(?i)\b(bearer|basic)(\s+)(?!\[redacted)[A-Za-z0-9._~+/=-]{6,}"),
        r"\1\2[redacted:bearer]",
    ),
    ("url_password", re.compile(r"(://[^/\s:@]*:)(?!\[redacted)[^/\s@]+(@)"), r"\1[redacted:url_password]\2"),
    # The name may have any prefix (HF_TOKEN, api-key), so only its end is matched, which keeps the time linear.
    (
        "assignment",
        re.compile(rf"(?i)({_NAME}[\"']?\s{{0,4}}[=:]\s{{0,4}})(?![\"']?\[redacted){_VALUE}"),
        r"\1[redacted:assignment]",
    ),
    (
        "option",
        re.compile(
            rf"(?i)(--[a-z0-9-]{{0,40}}{_NAME}(?!(?<=tokens)[ \t]{{1,4}}\d+(?!\S))[ \t]{{1,4}})"
            rf"(?!-|[\"']?\[redacted){_VALUE}"
        ),
        r"\1[redacted:option]",
    ),
)


@dataclass(frozen=True)
class Redacted:
    """A text without its secrets, and how many of each kind were removed."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def redact(text: str) -> Redacted:
    """Remove every secret that a pattern matches. Repeating it changes nothing."""
    counts: Counter[str] = Counter()
    for kind, pattern, replacement in _RULES:
        text, number = pattern.subn(replacement, text)
        if number:
            counts[kind] += number
    return Redacted(text, counts)
