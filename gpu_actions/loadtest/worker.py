"""One of several generator processes: `python -m gpu_actions.loadtest.worker`, driven by `session.WorkerSession`.

Standard input: the job as one JSON line, then `start TIME`, then perhaps `stop` and `drop`. When it closes, the parent is
gone and the worker ends.
Standard output: `ready`, a JSON line of counters twice a second, and at the end the record as bytes.
"""

import asyncio
import gc
import sys
from dataclasses import asdict

from pydantic_core import from_json, to_json

from gpu_actions.loadtest.generator import Generator, own_rows
from gpu_actions.loadtest.prompts import PromptMaker
from gpu_actions.loadtest.schedule import make_schedule
from gpu_actions.loadtest.session import usage_of_this_process
from gpu_actions.loadtest.spec import LoadSpec
from gpu_actions.loadtest.target import resolve_target

PROGRESS_EVERY_S = 0.5


async def _read_orders(
    reader: asyncio.StreamReader, stop: asyncio.Event, generator: Generator, main: "asyncio.Task[None]"
) -> None:
    while line := await reader.readline():
        if line == b"stop\n":
            stop.set()
        elif line == b"drop\n":
            generator.give_up()
    main.cancel()  # the parent is gone


async def work() -> None:
    """Run one job from standard input."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**20)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin.buffer)
    job = from_json(await reader.readline())
    spec = LoadSpec.model_validate(job["spec"])
    schedule = make_schedule(spec)
    target = await resolve_target(spec)
    rows = own_rows(len(schedule), job["worker"], job["workers"])
    generator = Generator(spec, schedule, rows, target, PromptMaker(spec, job["unit"]))
    gc.collect()
    gc.freeze()  # what exists now is never garbage; keeps collections short during the run
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    order = (await reader.readline()).split()
    if len(order) != 2 or order[0] != b"start":
        return
    stop = asyncio.Event()
    this = asyncio.current_task()
    assert this is not None  # noqa: S101  (a coroutine runs in a task)
    orders = loop.create_task(_read_orders(reader, stop, generator, this))
    run = loop.create_task(generator.run(float(order[1]), stop, drain_s=spec.drain_limit_s))
    while not run.done():
        await asyncio.wait([run], timeout=PROGRESS_EVERY_S)
        out.write(to_json({"counters": asdict(generator.counters)}) + b"\n")
        out.flush()
    await run
    orders.cancel()
    raw = generator.records.dump_rows(rows)
    cpu_s, rss = usage_of_this_process()
    final = {
        "counters": asdict(generator.counters),
        "size": len(raw),
        "gaps": generator.gaps.to_message(),
        "ttft": generator.ttft.to_message(),
        "cpu_s": cpu_s,
        "max_rss_mib": rss,
    }
    out.write(to_json(final) + b"\n" + raw)
    out.flush()


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(work())
    except ImportError:
        asyncio.run(work())
