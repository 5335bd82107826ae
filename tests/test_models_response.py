"""Thinking and answer of a response, on the token ids, for every family of marks."""

from __future__ import annotations

from typing import Any

import pytest
from families import CHATML, CHATML_TOKENS, tokenizer, turns
from hypothesis import given, settings
from hypothesis import strategies as st

from resd.engines.response import ReadResponse, ResponseReader
from resd.tasks.answers import final_text

QUEST = [{"role": "user", "content": "set the lamp; write <think> and </think> about it"}]


def read(tok: Any, response: str, finished: bool = True, **template: Any) -> ReadResponse:
    prompt = tok.apply_chat_template(QUEST, tokenize=False, add_generation_prompt=True, **template)
    ids = tok(prompt, add_special_tokens=False)["input_ids"]
    out = tok(response, add_special_tokens=False)["input_ids"]
    return ResponseReader(tok).read(ids, out + [tok.eos_token_id] * finished, finished)


def qwen3(mode: str = "hybrid") -> Any:
    prefill = {"hybrid": "", "thinking": "<think>\\n", "off": "<think>\\n\\n</think>\\n\\n"}[mode]
    template = turns(
        "<|im_start|>ROLE\\n", "<|im_end|>\\n", "<|im_start|>assistant\\n" + prefill, "<think>"
    )
    return tokenizer(template + "{# </think> #}", CHATML_TOKENS, ("<think>", "</think>"))


PLAIN = turns("ROLE: ", "\\n", "assistant: ")
FAMILIES: dict[str, tuple[Any, str, str]] = {
    "qwen": (lambda: qwen3(), "<think>\n", "\n</think>\n\n"),
    "magistral": (
        lambda: tokenizer(
            turns("[INST]", "[/INST]", ""), ("[INST]", "[/INST]", "[THINK]", "[/THINK]")
        ),
        "[THINK]",
        "[/THINK]",
    ),
    "seed": (
        lambda: tokenizer(PLAIN, ("<seed:think>", "</seed:think>")),
        "<seed:think>",
        "</seed:think>",
    ),
    "kimi": (lambda: tokenizer(PLAIN, ("◁think▷", "◁/think▷")), "◁think▷", "◁/think▷"),
    "command": (
        lambda: tokenizer(
            PLAIN,
            ("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        "<|START_THINKING|>",
        "<|END_THINKING|><|START_RESPONSE|>",
    ),
    "gemma 4": (
        lambda: tokenizer(PLAIN, ("<|channel>", "<channel|>")),
        "<|channel>thought\n",
        "<channel|>",
    ),
    "plain text marks": (lambda: tokenizer(PLAIN + "{# <think> #}"), "<think>", "</think>"),
    "granite 3.2": (
        lambda: tokenizer(PLAIN + "{# Here is my thought process: #}"),
        "Here is my thought process: ",
        "Here is my response: ",
    ),
    "gpt-oss": (
        lambda: tokenizer(
            turns("<|start|>ROLE<|message|>", "<|end|>", "<|start|>assistant"),
            ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>"),
        ),
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_thinking_and_answer_of_a_family(family: str) -> None:
    make, opening, closing = FAMILIES[family]
    tok = make()
    whole = read(tok, f"{opening}let me see{closing}set lamp 3 ")
    assert (whole.thinking, whole.answer) == ("let me see", "set lamp 3 ")
    assert final_text(whole.text) == "set lamp 3"
    for finished in (True, False):
        cut = read(tok, f"{opening}let me see", finished)
        assert (cut.thinking, cut.answer) == ("let me see", None)
        assert final_text(cut.text) == ""
    empty = read(tok, f"{opening}let me see{closing}")
    assert empty.answer == ""
    assert read(tok, " set lamp 3 \n") == ReadResponse(" set lamp 3 \n", None, " set lamp 3 \n")


@pytest.mark.parametrize("finished", [True, False])
def test_the_prompt_opened_the_thinking(finished: bool) -> None:
    cut = read(qwen3("thinking"), "let me see", finished)
    assert cut == ReadResponse("<think>\nlet me see", "let me see", None)
    whole = read(qwen3("thinking"), "let me see\n</think>\n\nset lamp", finished)
    assert whole.text == "<think>\nlet me see\n</think>\n\nset lamp"
    assert whole.answer == "set lamp"


def test_the_prompt_opened_the_thinking_in_plain_text() -> None:
    template = turns("<|ROLE|>\\n", "\\n", "<|assistant|>\\n<think>\\n")
    tok = tokenizer(template)
    assert read(tok, "let me see", False) == ReadResponse("<think>\nlet me see", "let me see", None)
    assert read(tok, "let me see</think>go").answer == "go"


def test_the_prompt_opened_a_channel() -> None:
    header = "<|start|>assistant<|channel|>CHANNEL<|message|>"
    names = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>")

    def make(channel: str) -> Any:
        generation = header.replace("CHANNEL", channel)
        return tokenizer(turns("<|start|>ROLE<|message|>", "<|end|>", generation), names)

    assert read(make("analysis"), "let me see", False).answer is None
    assert read(make("final"), "set lamp").answer == "set lamp"
    calls = "<|channel|>commentary to=lamp <|constrain|>json<|message|>{}<|end|>"
    assert read(FAMILIES["gpt-oss"][0](), calls).answer is None


def test_the_prompt_switched_thinking_off() -> None:
    told = "write </think> before the answer"
    assert read(qwen3("off"), told) == ReadResponse(
        # The mark is one token here, that is not special: decoded as it was written.
        told,
        None,
        told,
    )
    assert read(qwen3("off"), "<think>after all").answer is None


def test_a_model_without_thinking_keeps_what_it_writes_about_marks() -> None:
    for text in ("</think>", "a </think> b", "<think>a</think> b", "[THINK] x", " a\n"):
        assert read(tokenizer(CHATML, CHATML_TOKENS), text) == ReadResponse(text, None, text)


def test_marks_in_an_answer_are_part_of_it() -> None:
    tok = qwen3()
    assert (
        read(tok, "<think>a</think>use <think> and </think>").answer == "use <think> and </think>"
    )
    assert read(tok, "<think>a</think>\n<think>b</think>go").answer == "go"
    assert read(tok, "<think>a</think>\n<think>b").answer is None
    plain = FAMILIES["plain text marks"][0]()
    assert read(plain, "use <think> and </think>").answer == "use <think> and </think>"


def test_a_closing_token_whose_opening_was_left_out() -> None:
    found = read(qwen3(), "let me see</think>go")
    assert (found.thinking, found.answer) == ("let me see", "go")
    assert found.text == "<think>let me see</think>go"


def test_a_mark_spelt_out_is_no_mark_where_it_is_a_token() -> None:
    tok = qwen3()
    spelt = [i for c in "</think>" for i in tok(c, add_special_tokens=False)["input_ids"]]
    ids = tok("<think>", add_special_tokens=False)["input_ids"] + spelt
    assert ResponseReader(tok).read([], ids, False).answer is None


def test_a_mark_that_was_cut_in_two() -> None:
    plain = FAMILIES["plain text marks"][0]()
    assert read(plain, "<thi", False).answer is None
    assert read(plain, "<thi", True).answer == "<thi"


def test_answers_in_marks_of_their_own() -> None:
    tok = tokenizer(PLAIN + "{# <think> <answer> #}")
    assert read(tok, "<think>a</think>\n<answer>\ngo\n</answer>").answer == "go"
    assert (
        read(tok, "<think>a</think>\n<response>go</response>").answer == "<response>go</response>"
    )


def test_marks_that_the_tokenizer_declares() -> None:
    tok = tokenizer(PLAIN)
    assert read(tok, "{muse}a{/muse}go").thinking is None
    tok.response_template = {
        "fields": {"reasoning_content": {"open": "{muse}", "close": "{/muse}"}}
    }
    assert read(tok, "{muse}a{/muse}go").answer == "go"
    assert read(tok, "{muse}a").answer is None


@settings(max_examples=40)
@given(st.text(max_size=40), st.booleans())
def test_reading_never_fails_and_loses_nothing(text: str, finished: bool) -> None:
    for make in (FAMILIES["gpt-oss"][0], FAMILIES["plain text marks"][0], qwen3):
        tok = CACHE[make] = CACHE.get(make) or make()
        ids = tok(text, add_special_tokens=False)["input_ids"]
        found = ResponseReader(tok).read([], ids, finished)
        assert found.text is not None
        if found.thinking is None:
            assert found.answer == tok.decode(ids, skip_special_tokens=True)


CACHE: dict[Any, Any] = {}
