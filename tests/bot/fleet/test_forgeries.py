"""Orders that a writer of the database forges, replays, alters or outdates: a host carries out none of them."""

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

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
