"""Secrets out of texts that leave the host: the token shapes people paste and the assignments that hold them.

Slack, OpenAI, AWS, Hugging Face and GitHub tokens, bearer headers, PEM keys, user:password in URLs, KEY=, TOKEN= and so on.
What is cut leaves its kind behind, so a reader sees that something stood there.
"""

import re
from collections import Counter
from dataclasses import dataclass, field

_COUNT = r"(?![\"']?\s{0,4}[=:]\s{0,4}[\d.]+\b)"
"""Counts of tokens are what a serving log is full of; a number behind that name is no secret."""

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
    # The name may have any beginning (HF_TOKEN, api-key), so only its end is looked for: that keeps it linear.
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
    """A text without its secrets, and how many of which kind were cut."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def redact(text: str) -> Redacted:
    """Cut every secret that a pattern knows. Repeating it changes nothing more."""
    counts: Counter[str] = Counter()
    for kind, pattern, replacement in _RULES:
        text, number = pattern.subn(replacement, text)
        if number:
            counts[kind] += number
    return Redacted(text, counts)
