"""A completion server with known behaviour in a separate process: constant times, a freeze, a capacity, or a kind of lie.

`python truth_server.py '{"ttft_ms": 20}'` prints its port and serves until its standard input closes. With `log`, it writes one
JSON line per request: the row's prompt mark, and the monotonic times at which the server wrote its first and last token.
"""

import asyncio
import collections
import json
import os
import ssl
import sys
from pathlib import Path
from time import monotonic

LIES = (
    "error_event", "cut_stream", "clean_cut", "empty_chunks", "wrong_count", "more_chunks", "stall", "reset", "http_429",
    "http_503", "http_500", "http_404", "timeout", "no_done", "wrong_reason", "no_reason", "no_usage", "not_sse",
    "garbage", "split", "no_terminator", "crlf", "content_length",
)  # fmt: skip


class Server:
    def __init__(self, options):
        self.ttft = options.get("ttft_ms", 5) / 1000
        self.itl = options.get("itl_ms", 1) / 1000
        self.lie = options.get("lie", "")
        self.every = options.get("every", 1)
        self.freeze_after = options.get("freeze_after_s")
        self.freeze_for = options.get("freeze_for_s", 2.0)
        # Requests served at once: capacity = slots / (ttft + itl * (tokens - 1)).
        self.slots = options.get("slots")
        self.max_queue = options.get("max_queue")
        self.keep_alive = options.get("keep_alive", True)
        self.die_after = options.get("die_after")
        self.close_idle_after = options.get("close_idle_after_s")
        self.model = options.get("model", "truth")
        self.log = Path(options["log"]).open("w", buffering=1) if options.get("log") else None  # noqa: SIM115
        self.running = 0
        self.queue = collections.deque()
        self.seen = 0
        self.tokens = 0
        self.prompt_tokens = 0
        self.finished = 0
        self.token_bias = options.get("token_bias", 0)
        self.frozen_until = 0.0
        self.first_request_at = None
        self.key = options.get("key")

    def delay_for_freeze(self, at):
        """Move a time inside the freeze to its end: nothing is written before."""
        if self.freeze_after is None or self.first_request_at is None:
            return at
        begin = self.first_request_at + self.freeze_after
        return begin + self.freeze_for if begin <= at < begin + self.freeze_for else at

    def admit(self, job):
        if self.slots is None or self.running < self.slots:
            self.running += 1
            job.begin()
        elif self.max_queue is not None and len(self.queue) >= self.max_queue:
            job.refuse()
        else:
            self.queue.append(job)

    def release(self):
        self.running -= 1
        while self.queue and (self.slots is None or self.running < self.slots):
            job = self.queue.popleft()
            if not job.client.transport.is_closing():
                self.running += 1
                job.begin()


def chunk(payload):
    return b"%x\r\n%s\r\n" % (len(payload), payload)


def event(document):
    return b"data: " + json.dumps(document, separators=(",", ":")).encode() + b"\n\n"


TOKEN = chunk(
    event(
        {
            "id": "c",
            "object": "text_completion",
            "model": "truth",
            "choices": [{"index": 0, "text": "ab", "logprobs": None, "finish_reason": None}],
        }
    )
)
CHAT_TOKEN = chunk(
    event(
        {
            "id": "c",
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": {"content": "ab"}, "finish_reason": None}],
        }
    )
)
EMPTY = chunk(event({"choices": [{"index": 0, "text": "", "finish_reason": None}]}))
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Job:
    """One completion. Times are absolute from its arrival, so the server's own jitter does not add up."""

    __slots__ = (
        "arrived",
        "base",
        "body",
        "chat",
        "client",
        "first",
        "lie",
        "prompt_tokens",
        "sent",
        "server",
        "tokens",
    )

    def __init__(self, client, server, body, chat, arrived):
        self.client, self.server, self.body, self.chat, self.arrived = client, server, body, chat, arrived
        self.tokens = body.get("max_tokens", 16)
        self.sent = 0
        self.first = 0.0
        self.lie = server.lie if server.seen % server.every == 0 else ""
        prompt = body["messages"][0]["content"] if chat else body["prompt"]
        self.prompt_tokens = len(prompt.encode())

    def begin(self):
        loop = asyncio.get_running_loop()
        self.base = monotonic() if self.server.slots is not None else self.arrived
        if self.lie in (
            "http_429",
            "http_503",
            "http_500",
            "http_404",
            "reset",
            "not_sse",
            "garbage",
            "timeout",
            "content_length",
        ):
            self.lie_at_once()
            return
        loop.call_at(loop.time() + max(0.0, self.due(0) - monotonic()), self.step)

    def due(self, number):
        return self.server.delay_for_freeze(self.base + self.server.ttft + self.server.itl * number)

    def refuse(self):
        self.client.plain(429, {"error": {"message": "queue full"}})

    def lie_at_once(self):
        if self.lie == "timeout":
            return
        self.server.release()
        if self.lie == "reset":
            self.client.transport.abort()
        elif self.lie == "not_sse":
            self.client.plain(200, {"choices": [{"text": "all at once"}]})
        elif self.lie == "garbage":
            self.client.transport.write(b"\x00\x01 this is not http\r\n\r\n")
        elif self.lie == "content_length":
            body = (
                event({"choices": [{"text": "ab", "finish_reason": None}]}) * self.tokens
                + self.ending_events()
                + b"data: [DONE]\n\n"
            )
            self.client.transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n"
                % len(body)
                + body
            )
            self.client.ended()
        else:
            code = int(self.lie[-3:])
            self.client.plain(code, {"error": {"message": f"said {code}"}})

    def ending_events(self, reason="length", count=None):
        last = event({"choices": [{"index": 0, "text": "", "delta": {}, "finish_reason": reason}]})
        usage = {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens if count is None else count,
        }
        return last + (b"" if self.lie == "no_usage" else event({"choices": [], "usage": usage}))

    def step(self):
        transport = self.client.transport
        if transport.is_closing():
            self.server.release()
            return
        loop = asyncio.get_running_loop()
        token = EMPTY if self.lie == "empty_chunks" else CHAT_TOKEN if self.chat else TOKEN
        if self.sent == 0:
            now = monotonic()
            if (later := self.due(0)) > now + 0.0005:  # a freeze began meanwhile
                loop.call_at(loop.time() + later - now, self.step)
                return
            self.first = now
            token = HEAD + token
            if self.lie == "split":
                transport.write(token[:90])
                # The next token is scheduled by this callback: on a busy machine two independent timers may swap places.
                loop.call_later(0.003, self.send_token, token[90:])
                return
        elif self.lie == "crlf":
            inner = event({"choices": [{"text": "ab"}]}).replace(b"\n", b"\r\n")
            token = chunk(inner[:9]) + chunk(inner[9:])
        self.send_token(token)

    def send_token(self, token):
        transport = self.client.transport
        if transport.is_closing():
            self.server.release()
            return
        self.sent += 1
        if self.sent == 3 and self.lie in ("error_event", "cut_stream", "clean_cut", "stall"):
            self.lie_in_the_middle(token)
            return
        if self.sent < self.tokens:
            transport.write(token)
            loop = asyncio.get_running_loop()
            loop.call_at(loop.time() + max(0.0, self.due(self.sent) - monotonic()), self.step)
            return
        self.finish(token)

    def lie_in_the_middle(self, token):
        transport = self.client.transport
        transport.write(token)
        if self.lie == "error_event":
            transport.write(
                chunk(event({"error": {"message": "the engine fell over", "code": 500}}))
                + chunk(b"data: [DONE]\n\n")
                + b"0\r\n\r\n"
            )
            self.client.ended()
        elif self.lie == "cut_stream":
            transport.close()
        elif self.lie == "clean_cut":
            transport.write(b"0\r\n\r\n")
            self.client.ended()
        if self.lie != "stall":
            self.server.release()

    def finish(self, token):
        server = self.server
        extra = token * 3 if self.lie == "more_chunks" else b""
        reason = {"wrong_reason": "abort", "no_reason": None}.get(self.lie, "length")
        count = self.tokens - 3 if self.lie == "wrong_count" else self.tokens
        ending = chunk(self.ending_events(reason, count))
        done = b"" if self.lie == "no_done" else chunk(b"data: [DONE]\n\n")
        terminator = b"" if self.lie == "no_terminator" else b"0\r\n\r\n"
        self.client.transport.write(token + extra + ending + done + terminator)
        server.tokens += self.tokens + server.token_bias
        server.prompt_tokens += self.prompt_tokens
        server.finished += 1
        if server.log:
            prompt = self.body["messages"][0]["content"] if self.chat else self.body["prompt"]
            server.log.write(
                json.dumps(
                    {
                        "mark": prompt.split(" ")[0],
                        "arrived": self.arrived,
                        "first": self.first,
                        "last": monotonic(),
                    }
                )
                + "\n"
            )
        server.release()
        self.client.ended()
        if server.die_after is not None and server.finished >= server.die_after:
            os._exit(9)


class Client(asyncio.Protocol):
    __slots__ = ("idle_timer", "pending", "server", "transport")

    def __init__(self, server):
        self.server = server
        self.pending = b""
        self.idle_timer = None

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        arrived = monotonic()
        if self.idle_timer:
            self.idle_timer.cancel()
            self.idle_timer = None
        self.pending += data
        end = self.pending.find(b"\r\n\r\n")
        if self.pending[:1] not in (b"G", b"P"):
            self.transport.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
            self.transport.close()
            return
        if end < 0:
            return
        head = self.pending[:end]
        path = head.split(b" ", 2)[1].decode()
        key = self.server.key
        if key and f"Authorization: Bearer {key}".encode() not in head:
            self.pending = b""
            self.plain(401, {"error": "no"})
            return
        if head.startswith(b"GET"):
            self.pending = b""
            self.page(path)
            return
        at = head.lower().find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(self.pending) < end + 4 + length:
            return
        body = json.loads(self.pending[end + 4 : end + 4 + length])
        self.pending = b""
        server = self.server
        if server.first_request_at is None:
            server.first_request_at = arrived
        if body.get("model") != server.model:
            self.plain(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
            return
        server.seen += 1
        server.admit(Job(self, server, body, "chat" in path, arrived))

    def page(self, path):
        server = self.server
        if path == "/v1/models":
            self.plain(200, {"data": [{"id": server.model}]})
        elif path == "/metrics":
            lines = [
                "# HELP vllm:generation_tokens_total x",
                f'vllm:generation_tokens_total{{model_name="truth"}} {float(server.tokens)}',
                f'vllm:prompt_tokens_total{{model_name="truth"}} {float(server.prompt_tokens)}',
                f'vllm:request_success_total{{finished_reason="length",model_name="truth"}} {float(server.finished)}',
            ]
            self.plain(200, "\n".join(lines) + "\n")
        elif path == "/stats":
            self.plain(200, {"seen": server.seen, "finished": server.finished})
        else:
            self.plain(404, {"error": "no such page"})

    def plain(self, status, document):
        raw = document.encode() if isinstance(document, str) else json.dumps(document).encode()
        self.transport.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            % (status, len(raw))
            + raw
        )
        self.ended()

    def ended(self):
        if not self.server.keep_alive:
            self.transport.close()
        elif self.server.close_idle_after is not None:
            self.idle_timer = asyncio.get_running_loop().call_later(
                self.server.close_idle_after, self.transport.close
            )

    def connection_lost(self, exc):
        if self.idle_timer:
            self.idle_timer.cancel()


async def main(options):
    server = Server(options)
    loop = asyncio.get_running_loop()
    tls = None
    if options.get("cert"):
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(options["cert"])
    listening = await loop.create_server(
        lambda: Client(server), "127.0.0.1", options.get("port", 0), backlog=4096, ssl=tls
    )
    print(listening.sockets[0].getsockname()[1], flush=True)
    ended = asyncio.Event()
    loop.add_reader(0, lambda: ended.set() if not os.read(0, 100) else None)
    await ended.wait()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
    except ImportError:
        asyncio.run(main(json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
