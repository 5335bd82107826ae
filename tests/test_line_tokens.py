"""Long texts are read line by line, and the ids are those of the whole text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from resd.models import line_tokens
from resd.models.chat import ChatFormat
from resd.models.line_tokens import LineTokens

_CORPUS = [
    "def f(x):\n    return x/2\n\n- close every command with `;`\n- open\n\n",
    "[err-00012] helpful=3 harmful=0 :: never use // here.\n/usr/bin\n.\n/a\nIt's 12,345.\n",
    "<|user|>\nwhat?\r\n\tx  \n  y caf\u00e9\n\u4e2d\u6587\u3002\n\u4e2d\n## Title:\n* a\n> b\n",
] * 3
_GPT2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
_QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_O200K = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LOOKS_BACK = r"(?<=\n)\S+|\s+|\S+"


def _split(pattern):
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


# Splitter, normalizer, and settings of the model.
_KINDS = {
    "gpt2": (_GPT2, None, {}),
    "prefix space": (pre_tokenizers.ByteLevel(add_prefix_space=True), None, {}),
    "qwen": (_split(_QWEN), normalizers.NFC(), {}),
    "o200k": (_split(_O200K), None, {}),
    "digits": (pre_tokenizers.Sequence([pre_tokenizers.Digits(True), _GPT2]), None, {}),
    "metaspace": (pre_tokenizers.Metaspace(), None, {"unk_token": "<unk>"}),
    "gemma": (
        pre_tokenizers.Split(" ", behavior="merged_with_previous"),
        normalizers.Replace(" ", "\u2581"),
        {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True},
    ),
    "llama2": (
        None,
        normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]),
        {"unk_token": "<unk>", "byte_fallback": True, "fuse_unk": True},
    ),
    "across lines": (_GPT2, normalizers.Replace(Regex("zz\n(?=a)"), "b"), {}),
    "lines": (_split(r"[^\n]+\n?\S*|\n"), None, {}),
}  # fmt: skip


def _tokenizer(kind, *, tokens=()):
    splitter, normalizer, settings_ = _KINDS[kind]
    made = Tokenizer(models.BPE(**settings_))
    if splitter is not None:
        made.pre_tokenizer = splitter
    if normalizer is not None:
        made.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<unk>", "<|user|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(_CORPUS, trainer)
    made.add_tokens(list(tokens))
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="<|end|>")


def _whole(tokenizer, text, as_text):
    chosen = {"split_special_tokens": True} if as_text else {}
    return tokenizer(text, add_special_tokens=False, **chosen)["input_ids"]


_LINES = st.lists(
    st.one_of(
        st.sampled_from([line for text in _CORPUS[:3] for line in text.split("\n")]),
        st.text("aA1 .,/-[]<>|'\r\t\n\u00e9\u0301\u4e2d\u200b", max_size=12),
        st.sampled_from(["<|user|>", "<|user|>/x", "x<|end|>", "//", "- ```", "", " "]),
    ),
    max_size=30,
).map("\n".join)


@pytest.fixture(autouse=True, scope="module")
def _even_short_texts_are_cut():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_tokens, "_SHORT", 0)
        yield


@pytest.mark.parametrize(
    ("kind", "tokens"),
    [(kind, ()) for kind in _KINDS]
    + [
        ("gpt2", (AddedToken(".\n/"), AddedToken("<|end|>x", lstrip=True), AddedToken("\n\n"))),
        ("gemma", (AddedToken("\n\n"), AddedToken("- ", rstrip=True))),
    ],
)
def test_ids_are_those_of_the_whole_text(kind, tokens):
    tokenizer = _tokenizer(kind, tokens=tokens)
    lines = LineTokens(tokenizer)

    @settings(max_examples=40, deadline=None)
    @given(st.lists(_LINES, min_size=1, max_size=3), st.booleans())
    def check(texts, as_text):
        shared = texts[0]
        for text in (*texts, shared + "\n- a\n" + texts[-1], shared + "\n- b"):
            assert lines.ids(text, as_text) == _whole(tokenizer, text, as_text)

    check()


@pytest.mark.parametrize(
    ("kind", "cut", "kept"),
    [
        ("gpt2", "-[a/", ""),
        ("qwen", "-[a/", ""),
        ("o200k", "-[a", "/"),
        ("gemma", "[a", "-"),  # its vocabulary has learnt "\n-"
        ("llama2", "", "-[a/"),
        ("lines", "", "-[a/"),
        ("across lines", "", "-[a/"),
        ("metaspace", "", "-[a/"),
    ],
)
def test_a_text_is_cut_only_where_the_tokenizer_cuts(kind, cut, kept):
    lines = LineTokens(_tokenizer(kind))
    assert [char for char in cut + kept if lines.parts_before(char)] == list(cut)


def test_an_added_token_that_spans_a_cut_forbids_it():
    lines = LineTokens(
        _tokenizer("gpt2", tokens=[AddedToken("\n/"), AddedToken("[x", lstrip=True)])
    )
    assert [char for char in "-[a/" if lines.parts_before(char)] == ["-", "a"]


def test_a_line_is_read_once(monkeypatch):
    lines = LineTokens(_tokenizer("qwen"))
    read = []
    plain = lines._read
    playbook = "".join(f"- lesson {i}\n" for i in range(20))
    assert all(map(lines.parts_before, "-oa"))
    lines.ids(playbook)
    monkeypatch.setattr(lines, "_read", lambda texts, a: read.extend(texts) or plain(texts, a))
    lines.ids(f"{playbook}one question")
    lines.ids(f"Lessons:\n{playbook}another question")
    assert read == ["one question", "Lessons:\n", "another question"]


def test_what_was_read_long_ago_is_forgotten(monkeypatch):
    monkeypatch.setattr(line_tokens, "_CHARS_KEPT", 100)
    lines = LineTokens(_tokenizer("gpt2"))
    for i in range(300):
        lines.ids(f"- lesson {i}\n" * 2)
    assert len(lines._now) + len(lines._before) < 40


def test_a_tokenizer_of_unknown_parts_reads_whole():
    tokenizer = _tokenizer("gpt2")

    class Slow:
        split_special_tokens = False

        def __call__(self, text, **chosen):
            return tokenizer(text, **chosen)

    text = "- a\n- b\n"
    assert LineTokens(Slow()).ids(text) == _whole(tokenizer, text, False)


def test_prompts_count_the_playbook_once():
    """Thirty-two prompts with the same 200 lessons cost the tokenizer hardly more than one."""
    tokenizer = _tokenizer("qwen")
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m['content'] }}\n{% endfor %}"
    chat = ChatFormat(tokenizer)
    read = []
    plain = chat._lines._read
    chat._lines._read = lambda texts, a: read.extend(texts) or plain(texts, a)
    playbook = "".join(f"- lesson number {i} of them all\n" for i in range(200))
    prompts = [[{"role": "user", "content": f"{playbook}Question {i}?"}] for i in range(32)]
    for prompt in prompts:
        text = f"<|user|>{prompt[0]['content']}\n"
        assert chat.encode(prompt) == _whole(tokenizer, text, False)
        assert chat.count(prompt) == len(chat.encode(prompt))
    assert sum(map(len, read)) < 2 * len(playbook)
