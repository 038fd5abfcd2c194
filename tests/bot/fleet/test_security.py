"""Everything that a taken host, or someone who can write the database, may try: none of it succeeds.

ATTEMPTS is SQL in the session of the role `oncall_host_other`, against the host `toy`, the bot, and its own rights.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest

from bot.fleet import enrolment
from tests.bot.fleet.conftest import Site

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
