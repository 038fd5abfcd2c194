"""What the bot may ask of a host's worker, as typed orders, and the signature that makes one an order of the bot.

The database carries orders and has no say: a worker acts on an order only if the bot's Ed25519 key signed it, for this host,
within its time, and never twice. An order that this version does not know is refused by name.
"""

import base64
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from pydantic import Field, TypeAdapter, ValidationError

from bot.store.records import Decision, Person, Place
from gpu_actions.action import Signal
from gpu_actions.models import Frozen
from gpu_actions.system.files import write_atomically

CONTEXT = b"gpu-oncall order 1\n"
"""Signed with every order, so that a signature of this key for anything else is none for an order."""
LIFE_S = 120.0
MAX_LIFE_S = 3600.0
CLOCK_TOLERANCE_S = 30.0
MAX_BYTES = 64 * 1024

RunId = Annotated[str, Field(pattern=r"^[a-z]{2,4}-[a-z0-9]{4,12}$")]
Word = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]


class OrderRefused(Exception):
    """An order is not carried out. The message is one line for people: what is wrong, and what to do."""


class _Order(Frozen):
    """What every order says. `nonce` is unique; times are Unix seconds of the bot's clock."""

    host: str = Field(max_length=63)
    nonce: str = Field(pattern=r"^[0-9a-f]{32}$")
    issued_at: float = Field(allow_inf_nan=False)
    expires_at: float = Field(allow_inf_nan=False)


class StartRun(_Order):
    """Start a run. `run_id` is the bot's; the worker plans, waits for its gate, and carries it out."""

    verb: Literal["start"] = "start"
    run_id: RunId
    action: Word
    arguments: dict[Word, Annotated[str, Field(max_length=2000)]] = Field(default_factory=dict, max_length=40)
    requester: Person
    place: Place
    incident_id: str | None = Field(default=None, max_length=32)


class Decide(_Order):
    """People decided on the plan with this hash. The worker counts them against its own gate."""

    verb: Literal["decide"] = "decide"
    run_id: RunId
    action: Word
    arguments: dict[Word, Annotated[str, Field(max_length=2000)]] = Field(default_factory=dict, max_length=40)
    plan_hash: str = Field(pattern=r"^[0-9a-f]{6,64}$")
    decisions: tuple[Decision, ...] = Field(min_length=1, max_length=20)


class StopRun(_Order):
    """Stop a run and clean up."""

    verb: Literal["stop"] = "stop"
    run_id: RunId
    by: Person


class SignalRun(_Order):
    """Pass a person's signal on to the running step."""

    verb: Literal["signal"] = "signal"
    run_id: RunId
    signal: Signal
    by: Person


class MakePlan(_Order):
    """Make a plan and answer with it; nothing is changed."""

    verb: Literal["plan"] = "plan"
    action: Word
    arguments: dict[Word, Annotated[str, Field(max_length=2000)]] = Field(default_factory=dict, max_length=40)
    requester: Person


class Acknowledge(_Order):
    """A person handles the cause of an alert: the host's monitors keep quiet about it for a while."""

    verb: Literal["acknowledge"] = "acknowledge"
    cause: str = Field(min_length=1, max_length=200)
    by: Person


Order = StartRun | Decide | StopRun | SignalRun | MakePlan | Acknowledge
_ORDER: TypeAdapter[Order] = TypeAdapter(Annotated[Order, Field(discriminator="verb")])
VERBS = ("start", "decide", "stop", "signal", "plan", "acknowledge")


class SignedOrder(Frozen):
    """An order as the database holds it: canonical JSON and its signature."""

    envelope: str
    signature: str


def issue(
    kind: type[Any], *, host: str, clock: Callable[[], float], life_s: float = LIFE_S, **values: Any
) -> Any:
    """Return an order of this kind, valid from now for `life_s`."""
    now = clock()
    return kind(host=host, nonce=secrets.token_hex(16), issued_at=now, expires_at=now + life_s, **values)


class Signer:
    """Signs orders with the bot's private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def create(cls, path: Path) -> "Signer":
        """Create a new key in a private file."""
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        write_atomically(path, pem)
        path.chmod(0o600)
        return cls(key)

    @classmethod
    def load(cls, path: Path) -> "Signer":
        """Read the key of a file. Raise OSError, or ValueError if it holds no Ed25519 key."""
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path} holds no Ed25519 key")
        return cls(key)

    @property
    def public_key(self) -> str:
        """The key that the workers check with, as base64."""
        raw = self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return base64.b64encode(raw).decode()

    def sign(self, order: Order) -> SignedOrder:
        """Return the order with its signature."""
        envelope = json.dumps(order.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        signature = self._key.sign(CONTEXT + envelope.encode())
        return SignedOrder(envelope=envelope, signature=base64.b64encode(signature).decode())


class Verifier:
    """Checks orders on a host. `public_keys` are the bot's: two while a key is being replaced."""

    def __init__(self, public_keys: tuple[str, ...], *, host: str, clock: Callable[[], float]) -> None:
        self._keys = [_public_key(key) for key in public_keys]
        self._host = host
        self._clock = clock

    def verify(self, signed: SignedOrder) -> Order:
        """Return the order. Raise OrderRefused unless the bot signed exactly this, for this host, and for now.

        The signature is checked before anything is read from the envelope.
        """
        envelope = signed.envelope.encode()
        if len(envelope) > MAX_BYTES:
            raise OrderRefused(f"the order has {len(envelope)} bytes, more than {MAX_BYTES}")
        if not any(_signed_by(key, envelope, signed.signature) for key in self._keys):
            raise OrderRefused(
                "the order is not signed by the bot: its key was replaced, or someone else wrote into the database"
            )
        order = _parse(signed.envelope)
        if order.host != self._host:
            raise OrderRefused(f"the order is for {order.host}, this is {self._host}")
        now = self._clock()
        if order.expires_at - order.issued_at > MAX_LIFE_S:
            raise OrderRefused(f"the order is valid for longer than {MAX_LIFE_S:.0f} s")
        if order.issued_at > now + CLOCK_TOLERANCE_S:
            raise OrderRefused(
                f"the order was issued {order.issued_at - now:.0f} s from now: the clock of the bot or of this host is "
                "wrong; check both with `timedatectl`"
            )
        if now > order.expires_at:
            raise OrderRefused(
                f"the order expired {now - order.expires_at:.0f} s ago: the worker was away, or a clock is wrong"
            )
        return order


def read_order(envelope: str) -> Order:
    """Read an order of the bot's own, without its signature. Raise OrderRefused."""
    return _parse(envelope)


def check_public_key(text: str) -> None:
    """Raise ValueError unless the text is an Ed25519 public key in base64."""
    _public_key(text)


def _public_key(text: str) -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except ValueError:
        raise ValueError("not the public key that `gpu-oncall fleet init` prints") from None


def _signed_by(key: Ed25519PublicKey, envelope: bytes, signature: str) -> bool:
    try:
        key.verify(base64.b64decode(signature, validate=True), CONTEXT + envelope)
    except (InvalidSignature, ValueError):
        return False
    return True


def _parse(envelope: str) -> Order:
    try:
        return _ORDER.validate_json(envelope)
    except ValidationError as error:
        verb = _verb(envelope)
        if verb not in VERBS:
            known = ", ".join(VERBS)
            raise OrderRefused(
                f"this version does not know the order {verb!r} (it knows {known}): update the worker"
            ) from None
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "its form"
        raise OrderRefused(
            f"this version cannot read the order {verb!r} ({where}: {first['msg']}): bot and worker differ in version"
        ) from None


def _verb(envelope: str) -> str:
    try:
        found = json.loads(envelope)
    except (ValueError, RecursionError):
        return "?"
    return str(found.get("verb", "?"))[:32] if isinstance(found, dict) else "?"
