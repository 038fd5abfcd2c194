"""Everything that a taken host, or someone who can write the database, may try: none of it succeeds.

ATTEMPTS is SQL in the session of the role `oncall_host_other`, against the host `toy`, the bot, and its own rights.
FORGERIES are orders that a writer of the database puts into the box of `toy`.
"""

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from bot.fleet import enrolment
from bot.fleet.mirror import apply_report
from bot.fleet.orders import (
    CONTEXT,
    MakePlan,
    OrderRefused,
    SignalRun,
    SignedOrder,
    Signer,
    StartRun,
    StopRun,
    Verifier,
    issue,
)
from bot.fleet.postbox import PendingOrder, Report
from bot.fleet.received_files import receive_file
from bot.store.records import UserError
from tests.bot.fleet.conftest import Site, bot_of, link_of, worker_of
from tests.bot.fleet.test_fleet import start
from tests.bot.toys import HERE, ONCALL, effects

ATTEMPTS = {
    # read what belongs to another host
    "read the orders of another": "SELECT 1 FROM fleet.orders WHERE host = 'toy'",
    "read all orders": "SELECT 1 FROM fleet.orders WHERE host <> 'other'",
    "read the reports of another": "SELECT 1 FROM fleet.reports WHERE host <> 'other'",
    "read the signs of another": "SELECT 1 FROM fleet.signs WHERE host <> 'other'",
    "read the names of the others": "SELECT 1 FROM fleet.hosts WHERE name <> 'other'",
    "read through a join": "SELECT 1 FROM fleet.hosts h JOIN fleet.orders o ON o.host = h.name WHERE h.name = 'toy'",
    "read through a function in the filter": "SELECT 1 FROM fleet.orders WHERE host = 'toy' AND length(envelope) > 0",
    "read through a prepared view": (
        "CREATE TEMP VIEW seen AS SELECT * FROM fleet.orders; SELECT 1 FROM seen WHERE host = 'toy'"
    ),
    "read with COPY": "COPY (SELECT * FROM fleet.orders WHERE host = 'toy') TO PROGRAM 'cat'",
    "read the bot's tables": "SELECT 1 FROM public.runs",
    "read the passwords": "SELECT 1 FROM pg_authid",
    "read a file of the server": "SELECT pg_read_file('/etc/passwd')",
    "list a folder of the server": "SELECT pg_ls_dir('/')",
    "read the others' statements": "SELECT 1 FROM pg_stat_activity WHERE usename = 'oncall' AND query LIKE '%secret%'",
    # change what belongs to another host
    "answer another's order": "UPDATE fleet.orders SET answer = '{}', answered_at = now() WHERE host = 'toy'",
    "take another's order": "UPDATE fleet.orders SET taken_at = now() WHERE host = 'toy'",
    "delete another's order": "DELETE FROM fleet.orders WHERE host = 'toy'",
    "report as another": "INSERT INTO fleet.reports (host, kind, key, body) VALUES ('toy', 'run', 'x', '{}')",
    "move its own report to another": "UPDATE fleet.reports SET host = 'toy'",
    "replace another's report": (
        "INSERT INTO fleet.reports (host, kind, key, body) VALUES ('toy', 'run', 'toy-0000', '{\"x\": 1}') "
        "ON CONFLICT (host, kind, key) DO UPDATE SET body = excluded.body"
    ),
    "change another's report": "UPDATE fleet.reports SET body = '{}' WHERE host = 'toy'",
    "delete another's report": "DELETE FROM fleet.reports WHERE host = 'toy'",
    "live as another": "INSERT INTO fleet.signs (host, body) VALUES ('toy', '{}') ON CONFLICT (host) DO UPDATE SET at = now()",
    "silence another": "UPDATE fleet.signs SET at = now() - interval '1 day' WHERE host = 'toy'",
    "delete another's sign": "DELETE FROM fleet.signs WHERE host = 'toy'",
    "empty the box": "TRUNCATE fleet.orders",
    "lock the box": "LOCK TABLE fleet.orders IN ACCESS EXCLUSIVE MODE",
    "use a kind that nobody knows": "INSERT INTO fleet.reports (host, kind, key, body) VALUES ('other', 'order', 'x', '{}')",
    "fill the box": (
        "INSERT INTO fleet.reports (host, kind, key, body) SELECT 'other', 'run', 'x', jsonb_build_object('x', "
        "string_agg(md5(n::text), '')) FROM generate_series(1, 400000) n"
    ),
    # order, and change orders
    "order another": "INSERT INTO fleet.orders (host, envelope, signature) VALUES ('toy', '{}', '')",
    "order itself": "INSERT INTO fleet.orders (host, envelope, signature) VALUES ('other', '{}', '')",
    "alter its own order": "UPDATE fleet.orders SET envelope = '{}' WHERE host = 'other'",
    "sign its own order": "UPDATE fleet.orders SET signature = '' WHERE host = 'other'",
    "pass its order on to another": "UPDATE fleet.orders SET host = 'toy' WHERE host = 'other'",
    "delete its own order": "DELETE FROM fleet.orders WHERE host = 'other'",
    "make its order younger": "UPDATE fleet.orders SET created_at = now() + interval '1 day'",
    # raise its own rights
    "become the bot": "SET ROLE oncall_bot",
    "become another": "SET ROLE oncall_host_toy",
    "become the administrator": "SET ROLE oncall",
    "change the session": "SET SESSION AUTHORIZATION oncall_bot",
    "be a superuser": "ALTER ROLE oncall_host_other SUPERUSER",
    "pass row security by": "ALTER ROLE oncall_host_other BYPASSRLS",
    "make a role": "CREATE ROLE more LOGIN",
    "make a database": "CREATE DATABASE more",
    "join the bot": "GRANT oncall_bot TO oncall_host_other",
    "be given a right": "GRANT ALL ON fleet.orders TO oncall_host_other",
    "open its policy": "CREATE POLICY all_of_it ON fleet.orders USING (true)",
    "drop its policy": "DROP POLICY of_its_host ON fleet.orders",
    "turn row security off": "ALTER TABLE fleet.orders DISABLE ROW LEVEL SECURITY",
    "turn it off for itself": "SET row_security = off; SELECT 1 FROM fleet.orders WHERE host = 'toy'",
    "enrol a host": "INSERT INTO fleet.hosts (name, role) VALUES ('more', 'oncall_host_other')",
    "take another's name": "UPDATE fleet.hosts SET role = 'oncall_host_other' WHERE name = 'toy'",
    "rename itself": "UPDATE fleet.hosts SET name = 'toy2' WHERE name = 'other'",
    "relabel itself": "UPDATE fleet.hosts SET labels = '{\"pool\": \"x\"}' WHERE name = 'other'",
    "replace the function of its name": (
        "CREATE OR REPLACE FUNCTION fleet.me() RETURNS text LANGUAGE sql AS $$ SELECT 'toy' $$"
    ),
    "shadow the table of hosts": (
        "CREATE TEMP TABLE hosts (name text, role name, revoked_at timestamptz); SELECT 1 FROM fleet.orders WHERE host = 'toy'"
    ),
    "shadow it by the search path": "SET search_path = public; CREATE TABLE public.hosts (name text)",
    "make a schema": "CREATE SCHEMA more",
    "make a table in the box": "CREATE TABLE fleet.more (x int)",
    "change the trigger": "ALTER TABLE fleet.orders DISABLE TRIGGER ALL",
    "skip triggers": "SET session_replication_role = replica",
    "run a program": "COPY fleet.signs FROM PROGRAM 'echo'",
    "load a library": "LOAD 'dblink'",
    "install an extension": "CREATE EXTENSION dblink",
    "change the server": "ALTER SYSTEM SET ssl = off",
    "end another's connection": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'oncall'",
    "inject through a name": "SELECT 1 FROM fleet.orders WHERE host = 'other'' OR ''1''=''1'",
    "inject through the channel": (
        "NOTIFY oncall_host_toy, '{}'; SELECT 1 FROM fleet.orders WHERE host = 'toy'"
    ),
}


@pytest.fixture(scope="module")
def box(admin: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A post box with an order, a report and a sign of both hosts."""
    folder = tmp_path_factory.mktemp("box")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP SCHEMA IF EXISTS fleet CASCADE")
        kept = enrolment.init(admin, folder / "keys")
        for name in ("toy", "other"):
            enrolment.add(admin, folder / "keys", name, [])
            connection.execute(
                "INSERT INTO fleet.orders (host, envelope, signature) VALUES (%s, '{\"secret\": 1}', 's')",
                (name,),
            )
            connection.execute(
                "INSERT INTO fleet.reports (host, kind, key, body) VALUES (%s, 'run', 'toy-0000', '{}')",
                (name,),
            )
            connection.execute("INSERT INTO fleet.signs (host, body) VALUES (%s, '{}')", (name,))
        connection.execute("CREATE TABLE IF NOT EXISTS public.runs (secret int)")
        connection.execute("INSERT INTO public.runs VALUES (1)")
    with psycopg.connect(admin) as witness:  # its statement is secret, and it may not be ended
        witness.execute("SELECT 'secret'")
        yield Site(admin=admin, folder=folder, kept=kept)
        witness.execute("SELECT 'alive'")
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute("DROP TABLE public.runs")


def everything(admin: str) -> list[Any]:
    """Return all that an attempt must leave as it is: rows, roles, rights, policies, functions, settings."""
    with psycopg.connect(admin) as connection:
        return [
            connection.execute(query).fetchall()
            for query in (
                "SELECT * FROM fleet.orders ORDER BY id",
                "SELECT * FROM fleet.reports ORDER BY host, kind, key",
                "SELECT * FROM fleet.signs ORDER BY host",
                "SELECT * FROM fleet.hosts ORDER BY name",
                "SELECT rolname, rolsuper, rolcreaterole, rolbypassrls, rolcreatedb FROM pg_roles ORDER BY 1",
                "SELECT roleid::regrole::text, member::regrole::text FROM pg_auth_members ORDER BY 1, 2",
                "SELECT relname, relacl::text, relrowsecurity FROM pg_class "
                "WHERE relnamespace = 'fleet'::regnamespace ORDER BY 1",
                "SELECT * FROM pg_policies ORDER BY tablename, policyname",
                "SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'fleet'::regnamespace ORDER BY 1",
                "SELECT tgname, tgenabled FROM pg_trigger WHERE tgname LIKE 'ring%' ORDER BY 1",
                "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg\\_%' ORDER BY 1",
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1",
                "SELECT datname FROM pg_database ORDER BY 1",
                "SELECT extname FROM pg_extension ORDER BY 1",
            )
        ]


@pytest.mark.parametrize("attempt", ATTEMPTS)
def test_a_hosts_role_reads_and_changes_nothing_but_its_own(attempt: str, box: Site) -> None:
    before = everything(box.admin)
    with psycopg.connect(box.host_url("other"), autocommit=True) as taken:
        seen: list[Any] = []
        try:
            cursor = taken.execute(ATTEMPTS[attempt].encode())
            while cursor.description is not None or cursor.nextset():
                if cursor.description is not None:
                    seen = cursor.fetchall()
                if not cursor.nextset():
                    break
        except psycopg.Error:
            seen = []
        assert seen == []
    assert everything(box.admin) == before


NOT_IN_A_TRANSACTION = ("make a database", "change the server", "end another's connection")


def test_the_attempts_are_real_ones(box: Site) -> None:
    """An administrator succeeds with most of them, so what fails for a host fails for want of rights."""
    ran = []
    for name in ATTEMPTS.keys() - set(NOT_IN_A_TRANSACTION):
        with psycopg.connect(box.admin) as connection:
            with contextlib.suppress(psycopg.Error):
                connection.execute(ATTEMPTS[name].encode())
                ran.append(name)
            connection.rollback()
    assert len(ATTEMPTS) >= 60
    assert len(ran) >= 0.75 * len(ATTEMPTS), ATTEMPTS.keys() - set(ran)


# -- orders that the bot did not give ------------------------------------------------------------------------------


def raw(key: Ed25519PrivateKey, envelope: str, *, context: bytes = CONTEXT) -> SignedOrder:
    """Sign any text."""
    return SignedOrder(
        envelope=envelope, signature=base64.b64encode(key.sign(context + envelope.encode())).decode()
    )


class Forger:
    """Has a true order of the bot, another key, and (for `as_bot`) the bot's own hand."""

    def __init__(self, site: Site) -> None:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(site.kept.signing_key.read_bytes(), password=None)
        assert isinstance(key, Ed25519PrivateKey)
        self.key, self.other = key, Ed25519PrivateKey.generate()

    def order(self, **changes: Any) -> dict[str, Any]:
        """Return an order to start `toy`, with changes."""
        made = issue(
            StartRun,
            host="toy",
            clock=time.time,
            run_id="toy-2222",
            action="toy",
            arguments={"script": "count:a"},
            requester=ONCALL,
            place=HERE,
        )
        return {**made.model_dump(mode="json"), **changes}

    def true(self, **changes: Any) -> SignedOrder:
        """Return what the bot would sign."""
        return raw(self.key, json.dumps(self.order(**changes)))

    def altered(self, **changes: Any) -> SignedOrder:
        """Return a true order that was altered after it was signed."""
        signed = self.true()
        return signed.model_copy(update={"envelope": json.dumps({**json.loads(signed.envelope), **changes})})


def _pickle() -> str:
    import pickle

    return base64.b64encode(pickle.dumps(print)).decode()


NOW = time.time
FORGERIES: dict[str, Callable[[Forger], SignedOrder]] = {
    # forge
    "no signature": lambda f: f.true().model_copy(update={"signature": ""}),
    "a signature that is no base64": lambda f: f.true().model_copy(update={"signature": "ä"}),
    "the signature of another key": lambda f: raw(f.other, json.dumps(f.order())),
    "the signature of another purpose": lambda f: raw(f.key, json.dumps(f.order()), context=b""),
    "the signature of another order": lambda f: f.true().model_copy(update={"signature": f.true().signature}),
    "a signature with more behind it": lambda f: f.true().model_copy(
        update={"signature": base64.b64encode(base64.b64decode(f.true().signature) + b"x").decode()}
    ),
    # alter
    "another host": lambda f: f.altered(host="other"),
    "another action": lambda f: f.altered(action="gated"),
    "other arguments": lambda f: f.altered(arguments={"script": "count:b"}),
    "another run": lambda f: f.altered(run_id="toy-3333"),
    "another requester": lambda f: f.altered(requester={"id": "U_LEAD", "name": "lead"}),
    "another place": lambda f: f.altered(place={"channel": "C_OTHER"}),
    "a later end": lambda f: f.altered(expires_at=NOW() + 900),
    "another nonce": lambda f: f.altered(nonce="0" * 32),
    "another verb": lambda f: f.altered(verb="plan"),
    "a space at the end": lambda f: f.true().model_copy(update={"envelope": f.true().envelope + " "}),
    # what the bot signed for something else
    "an order for another host": lambda f: f.true(host="other"),
    # outlive
    "an order of yesterday": lambda f: f.true(issued_at=NOW() - 86_400, expires_at=NOW() - 86_280),
    "an order that ended a second ago": lambda f: f.true(issued_at=NOW() - 60, expires_at=NOW() - 1),
    "an order of tomorrow": lambda f: f.true(issued_at=NOW() + 86_400, expires_at=NOW() + 86_520),
    "an order without an end": lambda f: f.true(expires_at=NOW() + 10 * 365 * 86_400),
    "an end that is a word": lambda f: f.true(expires_at="never"),
    "an end that is not a number": lambda f: raw(f.key, json.dumps(f.order(expires_at=float("nan")))),
    "an end without end": lambda f: raw(f.key, json.dumps(f.order(expires_at=float("inf")))),
    "a beginning that is not a number": lambda f: raw(f.key, json.dumps(f.order(issued_at=float("nan")))),
    # inject: even the bot's own signature does not make these an order
    "a verb that nobody knows": lambda f: f.true(verb="shell"),
    "a command beside the order": lambda f: f.true(command="rm -rf /"),
    "a path as the action": lambda f: f.true(action="../../bin/sh"),
    "a path as the run": lambda f: f.true(run_id="../../etc"),
    "a shell as the name of an argument": lambda f: f.true(arguments={"script;reboot": "x"}),
    "an argument that the action does not have": lambda f: f.true(arguments={"shell": "reboot"}),
    "an argument that is a list": lambda f: f.true(arguments={"script": ["count:a"]}),
    "an action that does not exist": lambda f: f.true(action="reboot"),
    "a value without end": lambda f: f.true(arguments={"script": "x" * 3000}),
    "an order without end": lambda f: f.true(arguments={"script": "x" * 100_000}),
    "a list": lambda f: raw(f.key, "[]"),
    "no JSON": lambda f: raw(f.key, "start"),
    "a pickle": lambda f: raw(f.key, _pickle()),
    "deep nesting": lambda f: raw(f.key, "[" * 20_000),
}


async def test_a_host_carries_out_nothing_that_the_bot_did_not_order(site: Site) -> None:
    forger = Forger(site)
    async with link_of(site) as (runs, link):
        for number, (name, forge) in enumerate(FORGERIES.items()):
            with pytest.raises((OrderRefused, UserError)):
                await link.obey(PendingOrder(id=number, signed=forge(forger), taken=False))
                pytest.fail(f"carried out: {name}")
        assert runs.list() == []
        assert (await link.obey(PendingOrder(id=99, signed=forger.true(), taken=False)))[
            "started"
        ] == "toy-2222"


async def test_an_order_counts_once_even_after_a_restart_of_the_worker(site: Site) -> None:
    signer = Signer.load(site.kept.signing_key)
    forger = Forger(site)
    once = forger.true()
    async with link_of(site) as (runs, link):
        await link.obey(PendingOrder(id=1, signed=once, taken=False))
        run = await runs.wait("toy-2222", until=lambda run: run.status.final)
        assert effects(site.folder / "toy", "a") == [""]
    async with link_of(site) as (runs, link):
        with pytest.raises(OrderRefused, match="carried out before"):
            await link.obey(PendingOrder(id=2, signed=once, taken=False))
        # nor is a new nonce a way to start the same run again, or a new run under its name
        with pytest.raises(UserError, match="another run toy-2222"):
            await link.obey(PendingOrder(id=3, signed=forger.true(), taken=False))
        held = await start(runs, script="signal:s hold:h")
        await runs.wait(held.id, until=lambda run: run.status.value == "running")
        one = issue(SignalRun, host="toy", clock=time.time, run_id=held.id, signal="next", by=ONCALL)
        await link.obey(PendingOrder(id=4, signed=signer.sign(one), taken=False))
        stop = issue(StopRun, host="toy", clock=time.time, run_id=held.id, by=ONCALL)
        for order in (one, stop, stop):
            with contextlib.suppress(OrderRefused, UserError):
                await link.obey(PendingOrder(id=5, signed=signer.sign(order), taken=False))
        assert len(runs._store.signals(held.id)) == 1
        with pytest.raises(OrderRefused, match="carried out before"):
            await link.obey(PendingOrder(id=6, signed=signer.sign(stop), taken=False))
        with pytest.raises(OrderRefused, match="has no run"):
            away = issue(StopRun, host="toy", clock=time.time, run_id="toy-9999", by=ONCALL)
            await link.obey(PendingOrder(id=7, signed=signer.sign(away), taken=False))
        assert effects(site.folder / "toy", "a") == [""]
        assert run.status.value == "succeeded"


def test_an_older_worker_refuses_what_it_does_not_know_by_name(site: Site) -> None:
    verifier = Verifier((site.public_key,), host="toy", clock=time.time)
    with pytest.raises(OrderRefused, match=r"does not know the order 'drain' .*update the worker"):
        verifier.verify(Forger(site).true(verb="drain"))
    order = issue(MakePlan, host="toy", clock=lambda: time.time() + 3600, action="toy", requester=ONCALL)
    with pytest.raises(OrderRefused, match="the clock of the bot or of this host is wrong"):
        verifier.verify(Signer.load(site.kept.signing_key).sign(order))


# -- reports that a taken host makes up ----------------------------------------------------------------------------


async def test_a_host_can_report_neither_on_anothers_runs_nor_on_runs_that_nobody_asked_for(
    site: Site,
) -> None:
    secret = site.folder / "secret.txt"
    secret.write_text("of the bot's machine")
    async with bot_of(site) as face, worker_of(site):
        run = await start(face.runs, script="count:a file:f")
        done = await face.runs.wait(run.id, until=lambda run: run.status.final)
        artifact = {
            "name": "x.txt",
            "path": str(secret),
            "size_bytes": 1,
            "sha256": hashlib.sha256(b"x").hexdigest(),
            "source": "x",
        }
        true = {"action": "toy", "status": "failed", "outcome": "a lie"}
        lies: list[tuple[str, str, dict[str, Any]]] = [
            ("other", run.id, true),
            ("other", "toy-9999", true),
            ("toy", "toy-9999", true),
            ("toy", run.id, {**true, "action": "gated"}),
            ("toy", run.id, {**true, "status": "running"}),  # an ended run does not begin again
            ("toy", run.id, {"status": "failed"}),
            ("toy", run.id, {**true, "steps": "all"}),
        ]
        for host, run_id, body in lies:
            apply_report(face.store, host=host, run_id=run_id, body=body, link=lambda *_: "")
            assert (face.runs.get(run.id) or done).status == done.status, body
            assert (face.runs.get(run.id) or done).outcome == done.outcome, body
        # a path that a host names is never opened here
        body = {
            **true,
            "status": "succeeded",
            "artifacts": [{"step_id": "s", "name": "x.txt", "artifact": artifact}],
        }
        assert not apply_report(face.store, host="toy", run_id=run.id, body=body, link=lambda *_: "")
        (lied,) = [one for one in (face.runs.get(run.id) or done).artifacts if one.step_id == "s"]
        assert not lied.artifact.path.exists() and not lied.url

        async def receive(host: str, content: bytes = b"x", **changes: Any) -> str:
            file = {"run_id": run.id, "step_id": "s", "artifact": artifact, **changes}
            report = Report(host=host, kind="file", key="k", seq=1, body=file)
            return await receive_file(
                face.store, face.runs._artifacts, site.folder / "bot" / "hosts", report, content
            )

        assert await receive("other") == "the run is on toy"
        assert await receive("toy", run_id="toy-9999")
        assert await receive("toy", b"y") == "its sha256 is another one"
        assert await receive("toy", step_id="../../..")
        assert await receive("toy", artifact={**artifact, "name": "../../authorized_keys"})
        assert await receive("toy") == ""
        assert secret.read_text() == "of the bot's machine"
        alert = {
            "host": "toy",
            "cause": "none",
            "title": "",
            "source": "",
            "reason": "",
            "verdict": "healthy",
            "key": "",
            "at_s": 0,
        }
        problem = await face.runs._take(Report(host="other", kind="alert", key="k", seq=1, body=alert))
        assert problem == "the alert is about toy"
