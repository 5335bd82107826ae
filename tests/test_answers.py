"""The answer inside a response: after the thinking, in the last closed fence."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resd.tasks.answers import final_text, last_code_block


@pytest.mark.parametrize(
    ("response", "found"),
    [
        ("", None),
        ("no fence", None),
        ("```\nx\n```", "x"),
        ("```python\nx\ny\n```", "x\ny"),
        ("```\n```", ""),
        ("```\n\n```", ""),
        ("~~~\nx\n~~~", "x"),
        ("```\nfirst\n```\n text\n```\nlast\n```", "last"),
        ("```\nx", None),
        ("```\nfirst\n```\n```\ncut off", "first"),
        ("````\n```\nx\n```\n````", "```\nx\n```"),
        ("```\nx\n~~~\ny\n```", "x\n~~~\ny"),
        ("  ```\n  x\n  ```", "  x"),
        ("```\r\nx\r\n```\r\n", "x"),
        ("<think>```\nwrong\n```</think>```\nright\n```", "right"),
        ("<think>```\nx\n```", None),
        ("```\nx\n```\n<think>more", "x"),
        ("inline ```x``` is no fence", None),
        ("```python\nx\n```python\ny\n```", "x\n```python\ny"),
    ],
)
def test_last_code_block(response: str, found: str | None) -> None:
    assert last_code_block(response) == found


def test_final_text_of_unclosed_thinking_is_empty() -> None:
    assert final_text("<think>the answer is 4") == ""
    assert final_text("a plan</think> 4") == "4"


@given(st.text(alphabet="ab`~\n \r", max_size=60))
def test_any_text_has_a_block_or_none(text: str) -> None:
    block = last_code_block(text)
    assert block is None or block in text.replace("\r\n", "\n")


# A body on lines of its own that holds no fence.
BODY = st.text(alphabet="xy \n()", max_size=40).map(lambda body: f"<{body}>")


@given(BODY, st.text(alphabet="ab \n", max_size=20))
def test_what_was_fenced_is_found(body: str, before: str) -> None:
    assert last_code_block(f"{before}\n```lang\n{body}\n```\nafter") == body
