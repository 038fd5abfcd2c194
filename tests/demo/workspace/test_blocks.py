"""Which blocks are accepted and which are refused, with which error code and which place."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo.workspace.blocks import BlocksError, checked_blocks
from demo.workspace.transcript import message_lines

Block = dict[str, Any]


def text(words: str, kind: str = "mrkdwn") -> Block:
    return {"type": kind, "text": words}


def button(**changes: Any) -> Block:
    return {"type": "button", "text": text("Go", "plain_text"), "action_id": "go", "value": "r-1", **changes}


def actions(*elements: Block) -> Block:
    return {"type": "actions", "elements": list(elements)}


def task(**changes: Any) -> Block:
    return {"type": "task_card", "task_id": "t", "title": "Warm", "status": "pending", **changes}


RICH = {
    "type": "rich_text",
    "elements": [{"type": "rich_text_section", "elements": [{"type": "text", "text": "x"}]}],
}
GOOD: list[Block] = [
    {"type": "divider"},
    {"type": "header", "text": text("x" * 150, "plain_text")},
    {"type": "section", "text": text("x" * 3000)},
    {"type": "section", "fields": [text("x")] * 10},
    {"type": "section", "text": text("x"), "accessory": button(value="v" * 2000)},
    {
        "type": "context",
        "elements": [text("x"), {"type": "image", "image_url": "http://127.0.0.1/x", "alt_text": "x"}],
    },
    actions(button(), button(action_id="b", style="danger", text=text("x" * 75, "plain_text"))),
    {"type": "image", "slack_file": {"id": "F1"}, "alt_text": "x"},
    {"type": "markdown", "text": "**x**"},
    {"type": "table", "rows": [[{"type": "raw_text", "text": "x"}, RICH]]},
    {
        "type": "plan",
        "title": "Fallback",
        "tasks": [task(status=s) for s in ("complete", "in_progress", "error")],
    },
    task(details=RICH, output=RICH),
    RICH,
]
BAD: list[tuple[Block, str, str]] = [
    ({"type": "shout"}, "unsupported type: shout", "/blocks/0/type"),
    ({}, "unsupported type: None", "/blocks/0/type"),
    ({"type": "section", "text": text("x" * 3001)}, "less than 3001", "/blocks/0/text/text"),
    ({"type": "section", "text": text("")}, "more than 0", "/blocks/0/text/text"),
    ({"type": "section", "text": "x"}, "missing required field", "/blocks/0/text"),
    ({"type": "section"}, "text or fields", "/blocks/0"),
    ({"type": "section", "fields": [text("x")] * 11}, "no more than 10", "/blocks/0/fields"),
    ({"type": "header", "text": text("x" * 151, "plain_text")}, "less than 151", "/blocks/0/text/text"),
    ({"type": "header", "text": text("x")}, "must be one of plain_text", "/blocks/0/text/type"),
    (actions(), "no less than 1", "/blocks/0/elements"),
    (actions(button(text=text("x" * 76, "plain_text"))), "less than 76", "/blocks/0/elements/0/text/text"),
    (actions(button(value="x" * 2001)), "less than 2001", "/blocks/0/elements/0/value"),
    (actions(button(style="loud")), "must be one of primary, danger", "/blocks/0/elements/0/style"),
    (actions(button(), button()), "already exists", "/blocks/0/elements/1/action_id"),
    (actions(button(confirm={"title": text("x")})), "must be one of plain_text", "confirm/title/type"),
    (actions({"type": "lever"}), "unsupported type: lever", "/blocks/0/elements/0/type"),
    ({"type": "image", "alt_text": "x"}, "image_url or slack_file", "/blocks/0"),
    ({"type": "image", "image_url": "http://x/"}, "alt_text", "/blocks/0"),
    (task(status="done"), "must be one of complete", "/blocks/0/status"),
    ({"type": "plan", "title": "x", "tasks": [task()] * 51}, "no more than 50", "/blocks/0/tasks"),
    (
        {"type": "table", "rows": [[{"type": "raw_text", "text": "x"}]] * 101},
        "no more than 100",
        "/blocks/0/rows",
    ),
    (
        {"type": "table", "rows": [[{"type": "raw_text", "text": "x"}] * 21]},
        "no more than 20",
        "/blocks/0/rows/0",
    ),
    ({"type": "divider", "block_id": "x" * 256}, "less than 256", "/blocks/0/block_id"),
    ({"type": "divider", "block_id": ["x"]}, "must be a string", "/blocks/0/block_id"),
    (actions({"type": ["button"]}), "unsupported type: ['button']", "/blocks/0/elements/0/type"),
    (actions(button(action_id={})), "must be a string", "/blocks/0/elements/0/action_id"),
    (task(status=["done"]), "must be one of complete", "/blocks/0/status"),
]


@pytest.mark.parametrize("block", GOOD, ids=lambda block: block["type"])
def test_valid_blocks_are_accepted_and_get_ids(block: Block) -> None:
    (taken,) = checked_blocks([block])
    assert taken["block_id"]
    assert {**block, "block_id": taken["block_id"]} == {**taken, **{k: block[k] for k in block}}


@pytest.mark.parametrize(("block", "what", "where"), BAD, ids=[what for _, what, _ in BAD])
def test_invalid_blocks_are_refused_with_the_reason_and_the_place(
    block: Block, what: str, where: str
) -> None:
    with pytest.raises(BlocksError) as refused:
        checked_blocks([block])
    assert refused.value.code == "invalid_blocks"
    assert any(what in message and f"{where}]" in message for message in refused.value.messages), (
        refused.value.messages
    )


def test_fifty_blocks_are_accepted_and_fifty_one_are_refused() -> None:
    assert len(checked_blocks([{"type": "divider"}] * 50)) == 50
    with pytest.raises(BlocksError, match="no more than 50 items"):
        checked_blocks([{"type": "divider"}] * 51)


def test_blocks_that_are_too_long_in_total_have_their_own_error_code() -> None:
    section = {"type": "section", "text": text("x" * 2900)}
    assert checked_blocks([section] * 4)
    with pytest.raises(BlocksError) as refused:
        checked_blocks([section] * 5)
    assert refused.value.code == "msg_blocks_too_long"


def test_a_block_id_must_be_unique() -> None:
    with pytest.raises(BlocksError, match="already exists"):
        checked_blocks([{"type": "divider", "block_id": "a"}, {"type": "divider", "block_id": "a"}])


@pytest.mark.parametrize("blocks", ["[]", {"type": "divider"}, [1], [[]]])
def test_a_value_that_is_not_a_list_of_objects_has_its_own_error_code(blocks: object) -> None:
    with pytest.raises(BlocksError) as refused:
        checked_blocks(blocks)
    assert refused.value.code == "invalid_blocks_format"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "type",
                    "text",
                    "elements",
                    "fields",
                    "accessory",
                    "rows",
                    "tasks",
                    "status",
                    "title",
                    "options",
                    "details",
                ]
            )
            | st.text(max_size=4),
            inner
            | st.sampled_from(
                [block["type"] for block in GOOD] + ["button", "mrkdwn", "plain_text", "image"]
            ),
            max_size=5,
        )
    ),
    max_leaves=20,
)


@settings(max_examples=50)
@given(
    st.lists(
        st.dictionaries(st.sampled_from(["type", "text", "elements", "rows", "tasks", "accessory"]), JSON)
    )
)
def test_no_input_breaks_the_check_and_accepted_blocks_can_be_rendered(blocks: list[Block]) -> None:
    try:
        taken = checked_blocks(blocks)
    except BlocksError as error:
        assert error.messages
    else:
        message_lines({"blocks": taken}, {})


@pytest.mark.parametrize(
    ("block", "surface", "accepted"),
    [
        ({"type": "alert", "text": text("x"), "level": "warning"}, "modal", True),
        ({"type": "alert", "text": text("x")}, "message", False),
        ({"type": "markdown", "text": "x"}, "modal", False),
        ({"type": "plan", "title": "x"}, "home", False),
        ({"type": "table", "rows": [[{"type": "raw_text", "text": "x"}]]}, "home", True),
        ({"type": "table", "rows": [[{"type": "raw_text", "text": "x"}]]}, "modal", False),
        ({"type": "table", "rows": [[{"type": "raw_text", "text": ""}]]}, "message", False),
    ],
)
def test_some_blocks_exist_on_some_surfaces_only(block: dict[str, Any], surface: str, accepted: bool) -> None:
    if accepted:
        assert checked_blocks([block], surface=surface)
    else:
        with pytest.raises(BlocksError, match="invalid_blocks"):
            checked_blocks([block], surface=surface)


def test_a_message_has_one_table_one_plan_and_two_charts() -> None:
    table = {"type": "table", "rows": [[{"type": "raw_text", "text": "x"}]]}
    plan = {"type": "plan", "title": "x"}
    assert checked_blocks([table, plan, chart(), chart()])
    for blocks, problem in (
        ([table, table], "only_one_table_allowed"),
        ([plan, plan], "only_one_plan_allowed"),
        ([chart()] * 3, "no more than 2 data_visualization"),
    ):
        with pytest.raises(BlocksError, match=problem):
            checked_blocks(blocks)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"categories": ["1", "2", "2"]}, "unique"),
        ({"categories": ["1", "3"]}, "labels must match"),
        ({"categories": ["1", "x" * 21]}, "less than 21"),
        ({"categories": []}, "no less than 1"),
        ({"x_label": "x" * 51}, "less than 51"),
        ({"series": []}, "no less than 1"),
        ({"series": [{"name": "a", "data": [{"label": "1", "value": "5"}]}]}, "must be a number"),
        ({"series": [{"name": "x" * 21, "data": []}]}, "less than 21"),
        ({"type": "radar"}, "unsupported chart"),
        ({"type": "pie", "segments": [{"label": "a", "value": 0}]}, "greater than 0"),
    ],
)
def test_a_chart_is_checked_as_slack_documents_it(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(BlocksError, match=problem):
        checked_blocks([chart(**change)])


def chart(**change: Any) -> dict[str, Any]:
    """Return a chart of one series with two points; `change` goes to the chart or to its axis."""
    axis = {"categories": ["1", "2"]} | {k: v for k, v in change.items() if k in ("categories", "x_label")}
    data = [{"label": "1", "value": 5}, {"label": "2", "value": 7.5}]
    shape: dict[str, Any] = {"type": "line", "series": [{"name": "a", "data": data}], "axis_config": axis}
    shape |= {k: v for k, v in change.items() if k in ("type", "series", "segments")}
    return {"type": "data_visualization", "title": "x", "chart": shape}
