"""What building the prompts of a step costs: tokens are counted once, not once a prompt."""

import re

from resd.context import ContextBudgets, Entry, PromptBuilder, Sections, Templates
from resd.types import Example

EXAMPLE = Example("e1", [{"role": "user", "content": "Reverse a list."}])


def count(text):
    """Words and symbols."""
    return len(re.findall(r"\w+|[^\w\s]", text))


def builder(playbook=8192, count=count):
    return PromptBuilder(
        Templates(),
        ContextBudgets(playbook=playbook),
        count,
        lambda messages: sum(len(message["content"].split()) for message in messages),
        100_000,
    )


def test_a_playbook_is_counted_once_for_all_prompts_of_a_step():
    counted = []
    entries = [Entry(f"err-{i:05d}", f"lesson {i}") for i in range(200)]
    built = builder(count=lambda text: counted.append(text) or count(text))
    for number in range(32):
        question = [{"role": "user", "content": f"Question {number}?"}]
        example = Example(str(number), question)
        assert built.teacher(example, Sections(entries, trial=f"answer {number}"))
    assert len([text for text in counted if "lesson" in text]) == 200
    assert len(counted) <= 200 + 2 * 32


def test_an_entry_is_shown_as_it_is_now():
    """The same entries, changed in place between two prompts."""
    entries = [Entry("err-00001", "old words"), Entry("err-00002", "other words")]
    built = builder(playbook=count(entries[0].render()) * 2)
    built.reflect(EXAMPLE, Sections(entries, trial="an answer"))
    entries[0].content, entries[0].helpful = "new words", 7
    text = built.reflect(EXAMPLE, Sections(entries, trial="an answer"))[0]["content"]
    assert "[err-00001] helpful=7 harmful=0 :: new words" in text and "old words" not in text
    # The newer of two that do not fit together.
    entries[0].content, entries[0].created = "many new words more", 3
    text = built.reflect(EXAMPLE, Sections(entries, trial="an answer"))[0]["content"]
    assert "many new words more" in text and "other words" not in text
    # What does not decide whether it fits is shown all the same.
    entries[0].helpful, entries[0].tagged = 8, 3
    text = built.reflect(EXAMPLE, Sections(entries, trial="an answer"))[0]["content"]
    assert "helpful=8" in text
