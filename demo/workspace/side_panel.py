"""The page's side panel ("Break something", "Fix it"): buttons of another service, which the workspace only shows."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import aiohttp

from demo.workspace.records import JsonObject

PRESS_TIMEOUT_S = 120.0
LIST_TIMEOUT_S = 5.0


class PanelError(Exception):
    """Raised if the panel cannot list or run its buttons; the message is for the person who pressed."""


@dataclass(frozen=True, slots=True)
class PanelAction:
    """One button. `callback` returns the text to show; `url` is POSTed to instead and answers `{"text": ...}`.

    `style` is `danger` (breaks something), `primary` (fixes it) or empty.
    """

    id: str
    label: str
    help: str = ""
    style: str = ""
    callback: Callable[[], Awaitable[str]] | None = None
    url: str | None = None


class Panel:
    """The buttons passed to the constructor, followed by those that the service at `base_url` lists."""

    def __init__(self, actions: Sequence[PanelAction] = (), base_url: str | None = None) -> None:
        for action in actions:
            if (action.callback is None) == (action.url is None):
                raise ValueError(f"panel action {action.id!r} needs either a callback or a url")
        self._actions = {action.id: action for action in actions}
        self._base_url = base_url.rstrip("/") if base_url else None

    async def listing(self) -> list[JsonObject]:
        """Return the buttons as JSON: id, label, help, style, active. Raises PanelError if the service does not answer."""
        own: list[JsonObject] = [
            {"id": entry.id, "label": entry.label, "help": entry.help, "style": entry.style}
            for entry in self._actions.values()
        ]
        if self._base_url is None:
            return own
        listed = await _request("GET", self._base_url, LIST_TIMEOUT_S)
        if not isinstance(listed, list):
            raise PanelError(f"the panel at {self._base_url} did not answer with a list of buttons")
        return own + [entry for entry in listed if isinstance(entry, dict) and "id" in entry]

    async def press(self, action_id: str) -> str:
        """Run a button's action and return its text. Raises PanelError."""
        action = self._actions.get(action_id)
        if action is not None and action.callback is not None:
            return await action.callback()
        if action is not None:
            url = str(action.url)
        elif self._base_url is not None and all(letter.isalnum() or letter in "_-" for letter in action_id):
            url = f"{self._base_url}/{action_id}"
        else:
            raise PanelError(f"there is no panel action {action_id!r}")
        answer = await _request("POST", url, PRESS_TIMEOUT_S)
        return str(answer.get("text", "done")) if isinstance(answer, dict) else "done"


async def _request(method: str, url: str, timeout_s: float) -> object:
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.request(method, url) as response,
        ):
            answer: object = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        raise PanelError(f"the panel at {url} did not answer: {error or 'no answer in time'}") from error
    if response.status >= 400:
        reason = answer.get("text") if isinstance(answer, dict) else None
        raise PanelError(str(reason or f"the panel answered {response.status}"))
    return answer
