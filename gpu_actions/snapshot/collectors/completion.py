"""One synthetic completion through the tier's own URL: the only proof that it generates tokens.

A few tokens, streamed, with a deadline. The stream is read by the same sceptical reader that the serving drivers use, so an
error event, a cut stream and an empty answer are classes of their own.
"""

import asyncio
import time
from typing import Any, Literal

import aiohttp

from gpu_actions.serving.engines.completion import CompletionReader
from gpu_actions.serving.interfaces import EngineError
from gpu_actions.snapshot.collectors import CollectorSkipped
from gpu_actions.snapshot.host_model import CompletionReading

PROMPT = "gpu-oncall triage probe"

Outcome = Literal[
    "ok", "refused", "timeout", "http_error", "empty", "malformed", "cut", "error_event", "rejected"
]


async def collect_completion(
    url: str | None,
    *,
    model: str | None,
    api_key: str | None,
    session: aiohttp.ClientSession,
    deadline_s: float,
    tokens: int,
) -> CompletionReading:
    """Ask for `tokens` tokens. Raises CollectorSkipped when no engine was named. Never raises for what it answers."""
    if url is None:
        raise CollectorSkipped("no engine was named")
    base = url.rstrip("/")
    headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
    begun = time.monotonic()
    reader = CompletionReader(base, max_tokens=tokens, begun=begun)

    def reading(outcome: Outcome, *, detail: str = "", status: int | None = None) -> CompletionReading:
        return CompletionReading(
            url=base,
            outcome=outcome,
            status=status,
            tokens=reader.tokens if reader.tokens is not None else reader.chunks,
            ttft_ms=None if reader.first_at is None else (reader.first_at - begun) * 1000,
            e2e_ms=(time.monotonic() - begun) * 1000,
            deadline_s=deadline_s,
            detail=detail[:300],
            model=model or "",
        )

    status: int | None = None
    try:
        async with asyncio.timeout(deadline_s):
            if model is None:
                model = await first_model(base, session=session, headers=headers)
            body: dict[str, Any] = {
                "model": model,
                "prompt": PROMPT,
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
            async with session.post(f"{base}/v1/completions", json=body, headers=headers) as response:
                status = response.status
                if status != 200:
                    text = (await response.content.read(2000)).decode(errors="replace")
                    kind: Outcome = (
                        "rejected" if 400 <= status < 500 and status not in (408, 429) else "http_error"
                    )
                    return reading(kind, status=status, detail=f"answered {status}: {' '.join(text.split())}")
                async for line in response.content:
                    reader.feed(line.rstrip(b"\r\n"))
                    if reader.done:
                        break
    except TimeoutError:
        return reading("timeout", status=status, detail=f"not finished within {deadline_s:g} s")
    except EngineError as error:
        event = "error" in str(error) and "JSON" not in str(error)
        return reading("error_event" if event else "malformed", status=status, detail=str(error))
    except aiohttp.InvalidURL as error:
        return reading("rejected", detail=f"{error} is no URL")
    except (aiohttp.ClientConnectorError, ConnectionRefusedError) as error:
        return reading("refused", detail=str(error))
    except (aiohttp.ClientError, ConnectionError) as error:
        return reading("cut", status=status, detail=f"the connection broke: {error}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:  # a stream in some other shape
        return reading("malformed", status=status, detail=f"{type(error).__name__}: {error}")
    return _judged_by_reader(reader, reading)


def _judged_by_reader(reader: CompletionReader, reading: Any) -> CompletionReading:
    try:
        reader.result()
    except EngineError as error:
        kind: Outcome = "cut" if not reader.done else "empty" if not reader.text else "malformed"
        result: CompletionReading = reading(kind, status=200, detail=str(error))
        return result
    whole: CompletionReading = reading("ok", status=200)
    return whole


async def first_model(base: str, *, session: aiohttp.ClientSession, headers: dict[str, str]) -> str:
    """Ask the server which model it has. Gives an empty name where it does not say."""
    async with session.get(f"{base}/v1/models", headers=headers) as response:
        if response.status != 200:
            return ""
        document = await response.json(content_type=None)
    models = document.get("data") if isinstance(document, dict) else None
    if not isinstance(models, list) or not models or not isinstance(models[0], dict):
        return ""
    return str(models[0].get("id", ""))
