"""The pass over Block Kit blocks: each method checks one kind of value as Slack does and returns it as plain text."""

from collections.abc import Iterator
from typing import Any

from demo.workspace.plain_text import Names, emoji_word, plain
from demo.workspace.records import JsonObject

ELEMENT_TYPES = frozenset(
    {
        "button", "static_select", "overflow", "users_select", "channels_select", "conversations_select",
        "external_select", "multi_static_select", "multi_users_select", "checkboxes", "radio_buttons", "datepicker",
        "timepicker", "plain_text_input", "number_input", "image", "workflow_button",
    }
)  # fmt: skip
INPUT_TYPES = ELEMENT_TYPES - {"button", "overflow", "image", "workflow_button"}
"""What an input block may hold."""
OPTION_LIMITS = {"static_select": 100, "overflow": 5, "checkboxes": 100, "radio_buttons": 100}
RICH_TEXT_PARTS = ("rich_text_section", "rich_text_list", "rich_text_preformatted", "rich_text_quote")
TASK_WORDS = {"complete": "[ok]", "error": "[failed]", "in_progress": "[..]", "pending": "[ ]"}


class BlockWalk:
    """One pass over blocks. Collects problems and interactive elements; the methods return plain text.

    `place` is the JSON pointer of a value. A value that Slack would refuse is reported once and rendered as far as possible.
    """

    def __init__(self, names: Names) -> None:
        self.names = names
        self.problems: list[str] = []
        self.controls: list[tuple[JsonObject, JsonObject]] = []
        """Pairs of a block and an interactive element in it."""

    def refuse(self, what: str, place: str) -> None:
        """Report a problem."""
        self.problems.append(f"{what} [json-pointer:{place}]")

    def unique(self, name: str, value: JsonObject, seen: set[str], place: str, where: str = "") -> None:
        """Report an id that an earlier block or element has."""
        if value.get(name) is None:
            return
        if str(value[name]) in seen:
            self.refuse(f"`{name}` {value[name]!r} already exists{where}", f"{place}/{name}")
        seen.add(str(value[name]))

    def length(self, value: object, limit: int, place: str) -> None:
        """Check that an optional value is a string of at most `limit` characters."""
        if value is not None and not isinstance(value, str):
            self.refuse("must be a string", place)
        elif value is not None and len(value) > limit:
            self.refuse(f"must be less than {limit + 1} characters", place)

    def required(self, owner: JsonObject, name: str, place: str) -> None:
        """Check that a field is a string that is not empty."""
        if not isinstance(owner.get(name), str) or not owner[name]:
            self.refuse(f"missing required field: {name}", place)

    def one_of(self, value: object, allowed: tuple[str, ...], place: str) -> None:
        """Check that an optional value is one of the allowed words."""
        if value is not None and value not in allowed:
            self.refuse(f"must be one of {', '.join(allowed)}: {value}", place)

    def items(self, value: object, low: int, high: int, place: str) -> Iterator[tuple[Any, str]]:
        """Check the length of an array, then yield its entries with their places."""
        if not isinstance(value, list):
            self.refuse("must be an array", place)
            return
        if len(value) < low:
            self.refuse(f"no less than {low} items allowed", place)
        if len(value) > high:
            self.refuse(f"no more than {high} items allowed", place)
        for index, entry in enumerate(value):
            yield entry, f"{place}/{index}"

    def text(self, value: object, limit: int, place: str, *, plain_only: bool = False) -> str:
        """Check a text object and return its text."""
        if not isinstance(value, dict):
            self.refuse("missing required field: text object", place)
            return ""
        allowed = ("plain_text",) if plain_only else ("plain_text", "mrkdwn")
        self.one_of(type_of(value), allowed, f"{place}/type")
        if not isinstance(value.get("text"), str) or not value["text"]:
            self.refuse("must be more than 0 characters", f"{place}/text")
        else:
            self.length(value["text"], limit, f"{place}/text")
        return self.shown(value)

    def shown(self, value: object) -> str:
        """Return the text of a text object without checking it."""
        return plain(str(value.get("text", "")), self.names) if isinstance(value, dict) else ""

    def element(self, block: JsonObject, element: object, place: str) -> str:
        """Check an element of `block`. Return `[ Approve ]` for a button, `[ Choose: a | b ]` for a menu."""
        if not isinstance(element, dict) or type_of(element) not in ELEMENT_TYPES:
            self.refuse(f"unsupported type: {type_of(element)}", f"{place}/type")
            return ""
        kind = type_of(element)
        self.length(element.get("action_id"), 255, f"{place}/action_id")
        if kind == "image":
            return self.image(element, place)
        self.controls.append((block, element))
        if "confirm" in element:
            self.confirm(element["confirm"], f"{place}/confirm")
        if kind == "button":
            label = self.text(element.get("text"), 75, f"{place}/text", plain_only=True)
            self.length(element.get("value"), 2000, f"{place}/value")
            self.length(element.get("url"), 3000, f"{place}/url")
            self.one_of(element.get("style"), ("primary", "danger"), f"{place}/style")
            return f"[ {label} ]"
        if kind in OPTION_LIMITS and "option_groups" not in element:
            limit = OPTION_LIMITS[kind]
            for option, where in self.items(element.get("options"), 1, limit, f"{place}/options"):
                if isinstance(option, dict):
                    self.text(option.get("text"), 75, f"{where}/text")
                    self.length(option.get("value"), 150, f"{where}/value")
                else:
                    self.refuse("must be an object", where)
        options = element["options"] if isinstance(element.get("options"), list) else []
        labels = " | ".join(self.shown(option.get("text")) for option in options if isinstance(option, dict))
        return f"[ {self.shown(element.get('placeholder')) or 'choose'}: {labels} ]"

    def confirm(self, confirm: object, place: str) -> None:
        """Check a confirmation dialog; a terminal does not show it."""
        if not isinstance(confirm, dict):
            self.refuse("must be an object", place)
            return
        self.text(confirm.get("title"), 100, f"{place}/title", plain_only=True)
        self.text(confirm.get("text"), 300, f"{place}/text")
        for name in ("confirm", "deny"):
            self.text(confirm.get(name), 30, f"{place}/{name}", plain_only=True)

    def image(self, image: JsonObject, place: str) -> str:
        """Check an image block or element."""
        self.required(image, "alt_text", place)
        self.length(image.get("alt_text"), 2000, f"{place}/alt_text")
        file = image["slack_file"] if isinstance(image.get("slack_file"), dict) else {}
        address = image.get("image_url") or file.get("url") or file.get("id")
        if not address:
            self.refuse("missing required field: image_url or slack_file", place)
        self.length(image.get("image_url"), 3000, f"{place}/image_url")
        if isinstance(image.get("title"), dict):
            self.text(image["title"], 2000, f"{place}/title", plain_only=True)
        return f"[image: {image.get('alt_text')}] {address}"

    def rich_text(self, block: JsonObject, place: str) -> str:
        """Check a rich_text block."""
        parts = []
        for part, where in self.items(block.get("elements"), 1, 1000, f"{place}/elements"):
            if type_of(part) in RICH_TEXT_PARTS:
                entries = self.items(part.get("elements"), 0, 1000, f"{where}/elements")
                parts.append(_joined(part, [self.rich_entry(entry) for entry, _ in entries]))
            else:
                self.refuse(f"unsupported type: {type_of(part)}", f"{where}/type")
        return "\n".join(parts)

    def rich_entry(self, entry: object) -> str:
        """Return the text of anything inside a part of rich text."""
        if not isinstance(entry, dict):
            return ""
        match type_of(entry):
            case "user":
                return f"@{self.names.get(str(entry.get('user_id')), str(entry.get('user_id')))}"
            case "emoji":
                return emoji_word(str(entry.get("name")))
            case "link":
                return f"{entry['text']} ({entry.get('url')})" if entry.get("text") else str(entry.get("url"))
            case kind if kind in RICH_TEXT_PARTS:
                inner = entry.get("elements")
                return _joined(
                    entry, [self.rich_entry(one) for one in (inner if isinstance(inner, list) else [])]
                )
            case _:
                return str(entry.get("text") or entry.get("channel_id") or "")

    def task(self, task: JsonObject, place: str) -> list[str]:
        """Check a task card, alone or in a plan."""
        self.required(task, "task_id", place)
        self.required(task, "title", place)
        self.one_of(task.get("status"), tuple(TASK_WORDS), f"{place}/status")
        for source, where in self.items(task.get("sources", []), 0, 50, f"{place}/sources"):
            if type_of(source) != "url":
                self.refuse(f"unsupported type: {type_of(source)}", f"{where}/type")
            else:
                self.required(source, "url", where)
                self.required(source, "text", where)
        lines = [f"{TASK_WORDS.get(str(task.get('status')), '[?]')} {task.get('title')}"]
        for name in ("details", "output"):
            value = task.get(name)
            if value is not None and type_of(value) != "rich_text":
                self.refuse("must be a rich_text block", f"{place}/{name}")
            elif value is not None:
                lines += [f"     {line}" for line in self.rich_text(value, f"{place}/{name}").split("\n")]
        return lines


def type_of(value: object) -> str:
    """Return the `type` of a block or element, `None` where it has none."""
    return str(value.get("type")) if isinstance(value, dict) else "None"


def _joined(part: JsonObject, texts: list[str]) -> str:
    return "\n".join(f"- {text}" for text in texts) if part["type"] == "rich_text_list" else "".join(texts)
