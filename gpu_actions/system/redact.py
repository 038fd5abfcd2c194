"""Redact secrets from texts that leave the host: assignments, options, headers, URLs, known token formats.

The kind of the secret stays in its place, so a reader sees that one was removed. Our own rules come first; then the detectors
of detect-secrets look for the formats that are not listed here (see `detectors.py`).

A text is redacted before it is cut, never after: half a secret is still one, and no rule recognises it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_actions.system.detectors import library_findings

_QUOTE = r"(?:\\{0,3}[\"'])"
_GENERATED = "".join(rf"(?<!{word}\s)" for word in ("first", "next", "last", "no", "each", "output"))
"""Before `token`: what a model generates, not what opens a door ("first token: later than planned")."""

_NAME = (
    rf"(?:keys?|{_GENERATED}tokens?|secrets?|passwords?|passwds?|passphrases?|credentials?|(?<=_)pass|(?<![A-Za-z])pwd(?![=:]\s?[\"']?[/~.])|(?<=_)pwd|(?<=_)auth)"
    r"(?:_base|_?\d{1,2})?"
)
"""How the name of a secret ends. Its prefix (HF_TOKEN, api-key) is not matched, which keeps the time linear."""

_ORDINARY = (
    r"(?!(?:\\{0,3}[\"'])?\[redacted)"
    r"(?!(?:\\{0,3}[\"'])?(?:none|null|nil|true|false|undefined|unset|\*{3,})(?:\\{0,3}[\"'])?(?![^\s\"',;&)\]}\\]))"
    r"(?![\"']{2}|\[\s*\]|\(\s*\)|\{)"
    r"(?!\(?SecretStr\(['\"]\*|\\{0,3}[\"']<\|?[a-z_]{1,30}\|?>)"
)
"""What may follow such a name and is not a secret: nothing, a flag, a special token of a tokenizer, a masked value."""

_COUNT = (
    r"(?!(?:(?<=tokens)|(?<=keys))[\"']?\s{0,4}[=:]\s{0,4}[\d.]+\b)"
    r"(?!(?<=token)[\"']?\s{0,4}[=:]\s{0,4}[\d.]{1,9}(?![\w.]))"
)
"""A serving log is full of token counts; a number behind that name is not a secret."""

_STRING = r"(?:[bru]{0,2}\"(?:[^\"\\\n]|\\.|\"(?=\w))*\"?|[bru]{0,2}'(?:[^'\\\n]|\\.|'(?=\w))*'?)"
"""A string up to the end of its line; a quote before a letter begins another one, so this one was cut off."""

_LIST = r"(?:\[[^\]]{0,4000}\]?|\([^)\n]{0,4000}\)?)"
_CALL = rf"(?:[A-Za-z_]\w{{0,40}}\((?:{_STRING}|[^)\s]{{0,400}})\))"
_ESCAPED = r"(?:(?P<escape>\\{1,3}[\"']).{0,4000}?(?P=escape))"
_PLAIN = r"[^\s\"',;&]+(?:[\"'](?=\w)[^\s\"',;&]*)*"
_VALUE = rf"(?:{_STRING}|{_LIST}|{_CALL}|{_ESCAPED}|{_PLAIN})"
_BREAK = r"(?:[ \t]{0,4}|\s{0,8}(?=[\"'\[]))"

_ASSIGNMENT = re.compile(
    rf"(?i)({_NAME}{_COUNT}{_QUOTE}?[ \t]{{0,4}}(?:=>|:=|[=:]|%3d){_BREAK}){_ORDINARY}{_VALUE}"
)
_OPTION = re.compile(
    rf"(?i)((?<![\w-])--[a-z0-9_-]{{0,40}}{_NAME}(?!(?<=tokens)[ \t]{{1,4}}\d+(?!\S))(?:{_QUOTE},?)?[ \t]{{1,4}})"
    rf"(?!-){_ORDINARY}(?:{_STRING}|{_PLAIN})"
    r"(?:[ \t]{1,4}(?!-)(?=[\w.+-]{0,40}\d)[\w.+-]{6,200}(?![^\s\"',;]))*"
)
"""An option with its value; engines take several keys behind one `--api-key`, so words with digits that follow go too."""

_NO_SECRET_NAME = re.compile(r"(?i)(?:^|_)(?:public_keys?|.*tokens)$")
_SECRET_NAME = re.compile(rf"(?i)(?:{_NAME}|authorization|cookie)$")

_RULES: tuple[tuple[str, tuple[str, ...], re.Pattern[str], str], ...] = (
    (
        "pem",
        ("-----BEGIN ",),
        re.compile(r"-----BEGIN [A-Z0-9 ]+-----.*?(?:-----END [A-Z0-9 ]+-----|\Z)", re.S),
        "[redacted:pem]",
    ),
    (  # the first lines were cut off
        "pem",
        ("-----END ",),
        re.compile(r"(?:[A-Za-z0-9+/=]{1,80}(?:\s|\\n){1,4})*[A-Za-z0-9+/=]{0,80}-----END [A-Z0-9 ]+-----"),
        "[redacted:pem]",
    ),
    (  # a line from the middle, where a text is redacted line by line
        "pem",
        ("",),
        re.compile(
            r"(?m)(?<![\w+/=.-])(?=[A-Z0-9+/]{0,63}[a-z])(?=[a-z0-9+/]{0,63}[A-Z])(?=[A-Za-z+/]{0,63}\d)"
            r"[A-Za-z0-9+/]{64}(?=[ \t\r]*$)"
        ),
        "[redacted:pem]",
    ),
    (
        "authorization",
        ("uthorization", "UTHORIZATION"),
        re.compile(
            rf"(?i)(authorization{_QUOTE}?\s{{0,4}}[:=]\s{{0,4}}{_QUOTE}?(?:(?:bearer|basic|token|digest|apikey)\s+)?)"
            r"(?!\[redacted)(?!(?:none|null|bearer|basic|token|digest|apikey)\b)(?:AWS4[^\r\n\"']*|[^\s\"'\\,;]+)"
        ),
        r"\1[redacted:authorization]",
    ),
    (
        "bearer",
        ("earer", "EARER", "asic ", "ASIC "),
        re.compile(
            r"(?i)\b(bearer|basic)(\s+)(?!\[redacted)(?=[^\s\d]{0,200}\d|[A-Za-z0-9._~+/=-]{20})[A-Za-z0-9._~+/=-]{8,}"
        ),
        r"\1\2[redacted:bearer]",
    ),
    (
        "cookie",
        ("ookie:", "OOKIE:"),
        re.compile(r"(?i)(\b(?:set-)?cookie:)(?!\s{0,4}\[redacted)[^\r\n\"']+"),
        r"\1 [redacted:cookie]",
    ),
    (
        "netrc",
        (" password ",),
        re.compile(r"(\blogin\s+\S+\s+password\s+)(?!\[redacted)\S+"),
        r"\1[redacted:netrc]",
    ),
    (
        "user_option",
        (" -u", " --user", " --proxy-user"),
        re.compile(
            r"((?<=\s)(?:-u|--user|--proxy-user)[ =]?[\"']?[^\s:\"'/]{1,100}:)(?!\d+\b|\[redacted|/)[^\s\"']+"
        ),
        r"\1[redacted:user_option]",
    ),
    (
        "password_option",
        ("sshpass", "login"),
        re.compile(r"(\b(?:sshpass|login)\b[^\n]{0,200}?\s-p[ =]?)(?!\[redacted)[^\s\"']+"),
        r"\1[redacted:password_option]",
    ),
    (
        "registry_auth",
        ("auth",),
        re.compile(r"(\"auth\"\s{0,4}:\s{0,4}\")[A-Za-z0-9+/=]{8,}"),
        r"\1[redacted:registry_auth]",
    ),
    (
        "signed_url",
        ("ignature=", "redential=", "ecurity-Token=", "sig="),
        re.compile(
            r"([?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig)=)(?!\[redacted)[^\s&\"'<>]{40,}"
            r"|([?&]X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)=)(?!\[redacted)[^\s&\"'<>]+"
        ),
        r"\1\2[redacted:signed_url]",
    ),
    (
        "slack_webhook",
        ("hooks.slack.com/",),
        re.compile(r"(hooks\.slack\.com/(?:services|workflows|triggers)/)(?!\[redacted)[A-Za-z0-9/_-]{6,}"),
        r"\1[redacted:slack_webhook]",
    ),
    (
        "password_hash",
        ("$",),
        re.compile(r"\$(?:1|2[aby]|5|6|y|argon2id?)\$[./A-Za-z0-9$,=+]{10,}"),
        "[redacted:password_hash]",
    ),
    (
        "jwt",
        ("eyJ",),
        re.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)*"),
        "[redacted:jwt]",
    ),
    (
        "aws",
        ("AKIA", "ASIA", "ABIA", "ACCA"),
        re.compile(r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{12,}"),
        "[redacted:aws]",
    ),
)
"""Kind, texts, pattern, replacement. A rule is skipped, at no cost, for a text that contains none of its texts."""

_WORD = "[A-Za-z0-9]"
_DASHED = "[A-Za-z0-9_-]"
_PREFIXES: dict[str, tuple[tuple[str, ...], str, int]] = {
    "slack": (("xoxa-", "xoxb-", "xoxe-", "xoxe.xoxp-", "xoxp-", "xoxr-", "xoxs-", "xoxc-", "xoxd-"), "[A-Za-z0-9%-]", 6),
    "slack_app": (("xapp-",), "[A-Za-z0-9-]", 6),
    "openai": (("sk-",), _DASHED, 8),
    "huggingface": (("hf_", "api_org_"), _WORD, 16),
    "github": (("ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_"), "[A-Za-z0-9_]", 8),
    "gitlab": (("glpat-", "gldt-", "glft-", "glrt-", "glsoat-", "glcbt-", "glptt-", "gloas-", "glagent-"), "[A-Za-z0-9_.-]", 8),
    "nvidia": (("nvapi-",), _DASHED, 8),
    "google": (("AIza",), _DASHED, 20),
    "google_oauth": (("ya29.", "GOCSPX-"), "[A-Za-z0-9_.-]", 10),
    "databricks": (("dapi",), "[a-f0-9-]", 24),
    "digitalocean": (("dop_v1_", "doo_v1_"), "[a-f0-9]", 20),
    "docker": (("dckr_pat_",), _DASHED, 10),
    "grafana": (("glsa_", "glc_"), "[A-Za-z0-9_=+/]", 16),
    "vault": (("hvs.", "hvb."), _DASHED, 16),
    "groq": (("gsk_",), _WORD, 20),
    "replicate": (("r8_",), _WORD, 20),
    "xai": (("xai-",), _DASHED, 20),
    "perplexity": (("pplx-",), _WORD, 20),
    "tailscale": (("tskey-",), _DASHED, 10),
    "linear": (("lin_api_",), _WORD, 20),
    "npm": (("npm_",), _WORD, 20),
    "pypi": (("pypi-AgE",), _DASHED, 20),
    "stripe": (("sk_live_", "rk_live_", "sk_test_", "whsec_"), _WORD, 10),
    "age": (("AGE-SECRET-KEY-",), "[A-Z0-9]", 20),
}  # fmt: skip
"""Kind of token: what it begins with, the characters that follow, and how many at least."""

_TOKENS = [
    (kind, prefix, re.compile(rf"(?<![A-Za-z0-9_]){re.escape(prefix)}{characters}{{{least},}}"))
    for kind, (prefixes, characters, least) in _PREFIXES.items()
    for prefix in prefixes
]

_URL = re.compile(r"(?<=://)[^\s\"'<>`]+")
_NEXT_URL = re.compile(r"([,;|][A-Za-z][\w+.-]{0,20}://)")
_PORT = re.compile(r"\d{1,5}[/?#]")
_PEM_END = re.compile(r"[A-Za-z0-9+/=]{0,80}\s*-----END ")
_PEM_LINE = re.compile(r"\s*[A-Za-z0-9+/=]{1,80}\s*")
_DONE = re.compile(r"(?:\[redacted:\w+\])+")


@dataclass(frozen=True)
class Redacted:
    """A text without its secrets, and how many of each kind were removed."""

    text: str
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def redact(text: str) -> Redacted:
    """Remove every secret that a rule finds. Repeating it changes nothing."""
    counts: Counter[str] = Counter()

    def replace(kind: str, pattern: re.Pattern[str], by: str | Callable[[re.Match[str]], str]) -> None:
        nonlocal text
        text, number = pattern.subn(by, text)
        if number:
            counts[kind] += number

    for kind, words, pattern, replacement in _RULES:
        if any(word in text for word in words):
            replace(kind, pattern, replacement)
    for kind, prefix, pattern in _TOKENS:
        if prefix in text:
            replace(kind, pattern, f"[redacted:{kind}]")
    if "://" in text and "@" in text:
        before = text
        text = _URL.sub(_without_password, text)
        if text != before:
            counts["url_password"] += text.count("[redacted:url_") - before.count("[redacted:url_")
    replace("assignment", _ASSIGNMENT, r"\1[redacted:assignment]")
    if "--" in text:
        replace("option", _OPTION, r"\1[redacted:option]")
    for kind, secret in library_findings(text):
        counts[kind] += text.count(secret)
        text = text.replace(secret, f"[redacted:{kind}]")
    return Redacted(text, +counts)


def redacted_head(text: str, limit: int) -> str:
    """Return the first `limit` characters of a text without its secrets."""
    return redact(text).text[:limit]


def redacted_tail(text: str, limit: int) -> str:
    """Return the last `limit` characters of a text without its secrets."""
    return redact(text).text[-limit:]


def redacted_json(text: str) -> str:
    """Return a JSON text without the secrets in its strings; it stays JSON."""
    return json.dumps(redact_data(json.loads(text)), indent=1, ensure_ascii=False)


def is_secret_name(name: str) -> bool:
    """Return True if a field or variable of this name holds a secret."""
    return _SECRET_NAME.search(name) is not None and _NO_SECRET_NAME.search(name) is None


def redact_data(data: Any, *, name: str = "") -> Any:
    """Return JSON-like data without its secrets: in strings, and as values of fields whose name is that of a secret."""
    if isinstance(data, str):
        if data and is_secret_name(name):
            return data if _DONE.fullmatch(data) else "[redacted:assignment]"
        return redact(data).text
    if isinstance(data, Mapping):
        return {_key(key): redact_data(value, name=str(key)) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [redact_data(value, name=name) for value in _without_pem(data)]
    return data


def _without_pem(rows: Sequence[Any]) -> list[Any]:
    """Return rows without the PEM blocks that several of them hold line by line, as a list of a log's lines does."""
    kept = list(rows)
    first: int | None = None
    for number, row in enumerate(rows):
        if not isinstance(row, str):
            continue
        if first is None and (begins := row.rfind("-----BEGIN ")) >= 0 and "-----END " not in row[begins:]:
            first = number
        elif first is not None:
            kept[number] = "[redacted:pem]" + row.partition("-----END ")[2].partition("-----")[2]
            first = None if "-----END " in row else first
        elif row.startswith("-----END ") or _PEM_END.match(row):
            above = number - 1  # the first lines were cut off
            while above >= 0 and isinstance(rows[above], str) and _PEM_LINE.fullmatch(rows[above]):
                kept[above] = "[redacted:pem]"
                above -= 1
    return kept


def _key(key: Any) -> Any:
    return redact(key).text if isinstance(key, str) else key


def whole_lines(text: str, *, cut: bool) -> str:
    """Return the end of a log without its first line if the text was cut there: half a line may be half a secret."""
    return text.partition("\n")[2] if cut else text


def _without_password(found: re.Match[str]) -> str:
    """Return what follows `://` without a password or a token in front of the host."""
    scheme = found.string[max(0, found.start() - 8) : found.start() - 3].lower()
    parts = _NEXT_URL.split(found.group())
    web = scheme.endswith(("http", "https"))
    return "".join(_one_url(part, web=web) for part in parts)


def _one_url(part: str, *, web: bool) -> str:
    # Passwords with a slash or an @ are written without escaping, so the last @ counts.
    before, at, host = part.rpartition("@")
    if not at or _DONE.fullmatch(before):
        return part
    user, colon, password = before.partition(":")
    if "/" in user:
        inner, slashes, rest = part.partition("://")
        return f"{inner}{slashes}{_one_url(rest, web=web)}" if slashes else part
    if not colon:
        secret = len(user) >= 16
        return f"[redacted:url_token]@{host}" if secret else part
    if not password or _DONE.fullmatch(password) or (web and _PORT.match(password)):
        return part
    return f"{user}:[redacted:url_password]@{host}"
