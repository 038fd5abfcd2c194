"""What a person may do with the interactive elements of blocks: press one, choose an option, fill in a form. Pure functions."""

from demo.workspace.blocks import pressable_elements
from demo.workspace.records import JsonObject


def chosen_action(
    blocks: list[JsonObject], action_id: str, block_id: str | None, selected: str | None
) -> JsonObject | None:
    """Return the `actions[0]` object of a press, or None if the blocks have no such element or option."""
    for block, element in pressable_elements(blocks):
        if element["action_id"] != action_id or block_id not in (None, block["block_id"]):
            continue
        action = {name: element[name] for name in ("type", "action_id")} | {"block_id": block["block_id"]}
        if element["type"] == "button":
            return action | {name: element[name] for name in ("text", "value", "style") if name in element}
        options = element.get("options") or [
            option for group in element.get("option_groups", []) for option in group.get("options", [])
        ]
        chosen = next((option for option in options if option.get("value") == selected), None)
        return action | {"selected_option": chosen} if chosen else None
    return None


def missing_inputs(blocks: list[JsonObject], values: JsonObject) -> dict[str, str]:
    """Return an error for each required field that is empty and each text that is too long, by block id."""
    errors: dict[str, str] = {}
    for block in blocks:
        if block["type"] != "input":
            continue
        element = block["element"]
        given = (values.get(block["block_id"]) or {}).get(element["action_id"]) or {}
        value = given.get("value") or given.get("selected_option") or given.get("selected_options")
        limit = element.get("max_length", 3000)
        if not value and not block.get("optional"):
            errors[block["block_id"]] = "Please complete this required field."
        elif isinstance(value, str) and len(value) > limit:
            errors[block["block_id"]] = f"Please use at most {limit} characters."
    return errors


def form_values(blocks: list[JsonObject], filled: dict[str, str]) -> JsonObject:
    """Return the `state.values` of a form whose fields are filled in by block id; the others keep their first value.

    Raises ValueError for a field or an option that the form does not have.
    """
    inputs = {block["block_id"]: block["element"] for block in blocks if block["type"] == "input"}
    if unknown := filled.keys() - inputs.keys():
        raise ValueError(
            f"the form has no field {', '.join(sorted(unknown))}; there are: {', '.join(inputs)}"
        )
    values: JsonObject = {}
    for block_id, element in inputs.items():
        value: JsonObject = {"type": element["type"]}
        if "options" in element:
            chosen = element.get("initial_option")
            if block_id in filled:
                chosen = next((o for o in element["options"] if o["value"] == filled[block_id]), None)
                if chosen is None:
                    raise ValueError(f"{block_id} has no option {filled[block_id]!r}")
            value["selected_option"] = chosen
        else:
            value["value"] = filled.get(block_id) or element.get("initial_value")
        values[block_id] = {element["action_id"]: value}
    return values
