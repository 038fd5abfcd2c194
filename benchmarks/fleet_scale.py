"""Measure a fleet's post box with many workers: how late an order begins, what the database does at rest, a burst to all hosts.

The database, the bot's end, the signed orders and each worker's link (`WorkerLink`: connections, signs of life, check
against repeats) are the real ones. Simulated is the host behind a link: its engine notes when it was asked to start a
run and does nothing. Many links share a process and its SQLite. `--workers 10,100,1000` takes some minutes.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import psycopg
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from psycopg.types.json import Jsonb

from bot.fleet import enrolment
from bot.fleet.orders import Signer, StartRun, issue
from bot.fleet.postbox import BOT_CHANNEL, BotEnd
from bot.fleet.worker_link import WorkerLink
from bot.settings.model import FleetSettings
from bot.store.records import NOT_YET, Person
from bot.store.store import Store
from tests.postgres import Server, server

IN_A_PROCESS = 250
SETTLE_S = 5
REST_S = 15
SINGLE_ORDERS = 100
ORDERS_PER_S = 10
WAIT_S = 120
GOAL_P99_S = 0.5


class SimulatedRuns:
    """Notes when a run was asked for."""

    def __init__(self) -> None:
        self.began: dict[str, float] = {}

    async def start(self, *, run_id: str, **_: Any) -> None:
        self.began[run_id] = time.time()

    def changes(self) -> "Unchanging":
        return Unchanging()


class Unchanging:
    """Changes of runs that never come."""

    def __aiter__(self) -> "Unchanging":
        return self

    async def __anext__(self) -> None:
        await asyncio.Event().wait()

    def close(self) -> None:
        """Nothing is held."""


def worker_process(urls: dict[str, str], key: str, folder: str, ready: Any, over: Any) -> None:
    """Run the links of some hosts until `over` is set; leave when each run began in a file."""
    asyncio.run(_workers(urls, key, Path(folder), ready, over))


async def _workers(urls: dict[str, str], key: str, folder: Path, ready: Any, over: Any) -> None:
    store = Store(f"sqlite:///{folder}/state.db")
    store.create()
    runs = SimulatedRuns()

    async def state() -> dict[str, Any]:
        return {"tier": "tp", "active_runs": []}

    links = []
    for host, url in urls.items():
        fleet = FleetSettings.model_construct(url=url, bot_keys=(key,), actions=None, max_file_mib=16)
        settings: Any = SimpleNamespace(
            fleet=fleet, artifacts=SimpleNamespace(url=""), default_host=SimpleNamespace(name=host)
        )
        links.append(WorkerLink(settings, runs=runs, store=store, state=state))  # type: ignore[arg-type]
    for link in links:
        await link.start()
    ready.release()
    await asyncio.to_thread(over.wait)
    (folder / "began.json").write_text(json.dumps(runs.began))
    await asyncio.gather(*(link.close() for link in links))
    store.close()


def enrol(admin: str, folder: Path, count: int) -> tuple[str, dict[str, str]]:
    """Enrol hosts without certificates (the server is a Unix socket). Return the bot's URL and each host's."""
    kept = enrolment.init(admin, folder)
    bot = enrolment.bot_url(admin, kept)
    urls = {}
    with psycopg.connect(admin) as connection:
        for number in range(count):
            host = f"h{number:04}"
            role = enrolment.HOST_ROLE + host
            connection.execute(
                f"CREATE ROLE {role} LOGIN CONNECTION LIMIT {enrolment.CONNECTIONS} IN ROLE oncall_worker".encode()
            )
            connection.execute(
                "INSERT INTO fleet.hosts (name, role, labels) VALUES (%s, %s, %s)", (host, role, Jsonb({}))
            )
            urls[host] = bot.replace(enrolment.BOT_ROLE, role)
    return bot, urls


@contextlib.contextmanager
def fleet_of(urls: dict[str, str], key: str, folder: Path) -> Iterator[list[Path]]:
    """Run the workers in processes during the block; yield the files that they leave at its end."""
    context = multiprocessing.get_context("spawn")
    ready, over = context.Semaphore(0), context.Event()
    names = list(urls)
    groups = [names[at : at + IN_A_PROCESS] for at in range(0, len(names), IN_A_PROCESS)]
    processes, left = [], []
    for number, group in enumerate(groups):
        own = folder / f"workers{number}"
        own.mkdir()
        given = {name: urls[name] for name in group}
        processes.append(context.Process(target=worker_process, args=(given, key, str(own), ready, over)))
        left.append(own / "began.json")
    for process in processes:
        process.start()
    try:
        for _ in processes:
            if not ready.acquire(timeout=300):
                raise TimeoutError("the workers did not come up")
        yield left
    finally:
        over.set()
        for process in processes:
            process.join(60)


def database_use(admin: str, postmaster: psutil.Process) -> tuple[int, float, int]:
    """Return transactions so far, CPU seconds of all backends that live, and client connections."""
    with psycopg.connect(admin) as connection:
        row = connection.execute(
            "SELECT (SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()), "
            "(SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'gpu-oncall%')"
        ).fetchone()
    assert row is not None
    cpu_s = 0.0
    for process in (postmaster, *postmaster.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            cpu_s += sum(process.cpu_times()[:2])
    return int(row[0]), cpu_s, int(row[1])


def percentile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def drive(
    bot_url: str, hosts: list[str], signer: Signer, *, prefix: str, per_s: float
) -> dict[str, float]:
    """Send an order to each of the hosts, at a rate or as fast as it goes. Return when each run was asked for."""
    box, sent = BotEnd(bot_url), {}
    for number, host in enumerate(hosts):
        run_id = f"{prefix}-{number:06}"
        order = issue(
            StartRun,
            host=host,
            clock=time.time,
            run_id=run_id,
            action="triage",
            requester=Person(id="U1", name="ana"),
            place=NOT_YET,
        )
        sent[run_id] = time.time()
        await box.send(host, signer.sign(order))
        if per_s:
            await asyncio.sleep(1 / per_s)
    await box.close()
    return sent


async def collect(bot_url: str, expected: int) -> None:
    """Read the answers as the bot does, until all have come."""
    box, seen = BotEnd(bot_url), 0
    async with asyncio.timeout(WAIT_S), contextlib.aclosing(box.listen(BOT_CHANNEL, every_s=1)) as rings:
        async for _ in rings:
            for order_id, _envelope, answer in await box.answers():
                if "started" not in answer:
                    raise ValueError(f"an order was refused: {answer}")
                seen += 1
                await box.forget(order_id)
            if seen >= expected:
                break
    await box.close()


async def both(bot_url: str, hosts: list[str], signer: Signer, prefix: str, per_s: float) -> dict[str, float]:
    reading = asyncio.create_task(collect(bot_url, len(hosts)))
    sent = await drive(bot_url, hosts, signer, prefix=prefix, per_s=per_s)
    await reading
    return sent


def measure(made: Server, folder: Path, count: int) -> dict[str, Any]:
    """Measure one size of fleet."""
    key = Ed25519PrivateKey.generate()
    signer = Signer(key)
    bot_url, urls = enrol(made.url, folder / "keys", count)
    postmaster = psutil.Process(int((made.folder / "data" / "postmaster.pid").read_text().split()[0]))
    started = time.monotonic()
    with fleet_of(urls, signer.public_key, folder) as left:
        up_s = time.monotonic() - started
        time.sleep(SETTLE_S)
        before, cpu, _ = database_use(made.url, postmaster)
        time.sleep(REST_S)
        after, cpu_after, connections = database_use(made.url, postmaster)
        some = random.choices(list(urls), k=SINGLE_ORDERS)
        sent = asyncio.run(both(bot_url, some, signer, "one", ORDERS_PER_S))
        burst_from = time.time()
        burst = asyncio.run(both(bot_url, list(urls), signer, "all", 0))
        answered_s = time.time() - burst_from
    began: dict[str, float] = {}
    for file in left:
        began.update(json.loads(file.read_text()))
    single = [began[run_id] - at for run_id, at in sent.items()]
    all_hosts = [began[run_id] - burst_from for run_id in burst]
    return {
        "workers": count,
        "up_s": round(up_s, 1),
        "connections": connections,
        "transactions_per_s": round((after - before) / REST_S, 1),
        "database_cpu_percent": round(100 * (cpu_after - cpu) / REST_S, 1),
        "order_p50_s": round(statistics.median(single), 4),
        "order_p99_s": round(percentile(single, 0.99), 4),
        "burst_p50_s": round(statistics.median(all_hosts), 3),
        "burst_last_s": round(max(all_hosts), 3),
        "burst_answered_s": round(answered_s, 3),
        "load_average": round(psutil.getloadavg()[0], 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", default="10,100,1000", help="sizes, with commas")
    parser.add_argument("--json", type=Path, help="a file for the result")
    given = parser.parse_args()
    found = []
    for count in (int(one) for one in given.workers.split(",")):
        with (
            tempfile.TemporaryDirectory() as folder,
            server(max_connections=enrolment.CONNECTIONS * count // 2 + 20) as made,
        ):
            found.append(measure(made, Path(folder), count))
        print(json.dumps(found[-1]), flush=True)
        if given.json:
            given.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if found[-1]["order_p99_s"] < GOAL_P99_S else 1


if __name__ == "__main__":
    raise SystemExit(main())
