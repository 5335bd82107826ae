"""Token ids of long texts, of which every line is read once.

The prompts of a step share most of their text (the playbook), and reading it again for each is
most of what building them costs. A text is cut between lines where the tokenizer cuts anyway, so
that the ids are those of the whole text; where that cannot be shown, a text is read whole.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import Any

# A shorter text is not worth cutting.
_SHORT = 1000
_CHARS_KEPT = 1 << 21
# Normalizers that look at no more of a text than a letter and its accents.
_LOCAL = frozenset(("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents"))
# How a line may end before its newline, and go on after its first character. A blank before the
# newline is read by what follows it: no cut there.
_USUAL_ENDS, _USUAL_TAILS = ("a", "."), ("", "a")
_ENDS = (
    *("a", "A", "'s", "1", ".", ",", ")", "'", '"', "/", "<", ">", "_", "-", "#", "\\", "a:", " a"),
    *("\u00e9", "e\u0301", "\u4e2d", "\u3002", "\u0e01", "\u200b", "\u2603", "\U0001f642", "\x01"),
)
_TAILS = ("", "a", "1", " ", ".", "/", "\n")
_TRIED = dict.fromkeys(
    [(end, tail) for end in _ENDS for tail in _USUAL_TAILS]
    + [(end, tail) for end in _USUAL_ENDS for tail in _TAILS]
)
# A newline as vocabularies write it: as it is, byte by byte, and as a byte that has no token.
_NEWLINES = ("\n", "\u010a", "<0x0A>")


@dataclass(frozen=True)
class _Read:
    """A text that was read: where it was cut, and how many of its ids stand before each cut."""

    text: str
    ends: list[int]
    counts: list[int]
    ids: list[int]


class LineTokens:
    """Reads texts line by line, and remembers the lines' token ids.

    Args:
        tokenizer: of `transformers`. One whose parts are not known reads every text whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._starts: dict[str, bool] = {"": False}
        # Lines of now, and lines of before: memory has a bound that costs nothing at each look.
        # The key is the line, and whether the names of special tokens are text in it.
        self._now: dict[tuple[str, bool], Sequence[int]] = {}
        self._before: dict[tuple[str, bool], Sequence[int]] = {}
        self._chars = 0
        self._last: dict[bool, _Read] = {}

    def ids(self, text: str, special_as_text: bool = False) -> list[int]:
        """Token ids of a text, as the tokenizer gives them without tokens of its own.

        Args:
            text: of any length.
            special_as_text: whether the names of special tokens are text like any other.
        """
        if len(text) < _SHORT:
            return list(self._of_lines([text], special_as_text)[text])
        last = self._last.get(special_as_text, _Read("", [], [], []))
        # Up to the last cut before which, and after which by a letter, both texts are the same.
        same = bisect_left(last.ends, _shared(last.text, text))
        ends, counts = last.ends[:same], last.counts[:same]
        begin, found = (ends[-1], last.ids[: counts[-1]]) if same else (0, [])
        lines = list(self._lines(text, begin))
        known = self._of_lines(lines, special_as_text)
        for line in lines:
            begin += len(line)
            found += known[line]
            ends.append(begin)
            counts.append(len(found))
        self._last[special_as_text] = _Read(text, ends[:-1], counts[:-1], found)
        return list(found)

    def _of_lines(self, lines: Sequence[str], special_as_text: bool) -> dict[str, Sequence[int]]:
        known = {line: self._look(line, special_as_text) for line in lines}
        missing = [line for line, ids in known.items() if ids is None]
        if missing:
            read = self._read if self._parts is not None else self._read_whole
            for line, ids in zip(missing, read(missing, special_as_text), strict=True):
                known[line] = ids
                self._keep(line, special_as_text, ids)
        return {line: ids for line, ids in known.items() if ids is not None}

    def _look(self, line: str, special_as_text: bool) -> Sequence[int] | None:
        key = (line, special_as_text)
        ids = self._now.get(key)
        if ids is None and (ids := self._before.get(key)) is not None:
            self._keep(line, special_as_text, ids)
        return ids

    def _keep(self, line: str, special_as_text: bool, ids: Sequence[int]) -> None:
        if self._chars > _CHARS_KEPT:
            self._before, self._now, self._chars = self._now, {}, 0
        self._now[line, special_as_text] = ids
        self._chars += len(line)

    def _lines(self, text: str, begin: int) -> Iterator[str]:
        """The lines of a text from a cut on, joined where its tokenizer may read across ends."""
        end = begin
        while (end := text.find("\n", end) + 1) > 0:
            if not text[max(0, end - 2) : end - 1].strip():
                continue
            if self.parts_before(text[end : end + 1]):
                yield text[begin:end]
                begin = end
        yield text[begin:]

    def _read_whole(self, texts: Sequence[str], special_as_text: bool) -> list[list[int]]:
        chosen = {"split_special_tokens": True} if special_as_text else {}
        return [
            list(self._tokenizer(text, add_special_tokens=False, **chosen)["input_ids"])
            for text in texts
        ]

    def _read(self, texts: Sequence[str], special_as_text: bool) -> list[list[int]]:
        """Many texts at once, without what only offsets need: half the time."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = special_as_text or self._tokenizer.split_special_tokens
        read = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in read]

    # -- where a text may be cut -------------------------------------------------------------

    def parts_before(self, char: str) -> bool:
        """Whether a new line that starts with a character is read as if the text began there.

        Not after a line that ends in a blank. Tried on lines of every kind, once a character: first
        on the tokenizer's parts, then on the whole as it is called.
        """
        if char not in self._starts:
            parts = self._parts
            self._starts[char] = (
                parts is not None and parts.part_before(char) and self._reads_the_same(char)
            )
        return self._starts[char]

    @cached_property
    def _parts(self) -> _Parts | None:
        try:
            parts = _Parts(self._tokenizer)
            return parts if parts.known else None
        except Exception:  # a tokenizer made of other parts: nothing is known of it
            return None

    def _reads_the_same(self, char: str) -> bool:
        lines = [f"{char}a 1{end}\n" for end in _ENDS]
        text = "".join(lines)
        return all(
            self._read_whole([text], as_text) == [list(chain(*self._read(lines, as_text)))]
            for as_text in (False, True)
        )


def _shared(a: str, b: str) -> int:
    """How many characters two texts begin with in common."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


class _Parts:
    """What a fast tokenizer is made of, and where it cuts a text into words.

    Attributes:
        known: whether these are parts that read each word on its own.
    """

    def __init__(self, tokenizer: Any) -> None:
        backend = tokenizer.backend_tokenizer
        self._normalizer, self._splitter = backend.normalizer, backend.pre_tokenizer
        self._model = backend.model
        self._added = list(tokenizer.added_tokens_decoder.values())
        self._vocabulary = tokenizer.get_vocab
        random = getattr(self._model, "dropout", None)
        self.known = not random and _is_local(self._normalizer)
        self._lefts = {end: self._words(f"{end}\n") for end in _ENDS}

    def part_before(self, char: str) -> bool:
        """Whether nothing is ever read across a newline and this character.

        They fall into two words; or they fall into one, but no token of a BPE's vocabulary holds
        both, so that nothing is merged across. An added token that holds both, or that takes the
        white space before it, forbids it too.
        """
        if char.isspace() or any(self._spans(token, char) for token in self._added):
            return False
        parted = joined = True
        rights = {tail: self._words(char + tail) for tail in _TAILS}
        for end, tail in _TRIED:
            left, right = self._lefts[end], rights[tail]
            both = self._words(f"{end}\n{char}{tail}")
            parted = parted and both == left + right
            joined = joined and both == [*left[:-1], left[-1] + right[0], *right[1:]]
        return parted or (joined and _is_plain_bpe(self._model) and not self._merges(char))

    def _words(self, text: str) -> list[str]:
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        if self._splitter is None:
            return [text]
        return [word for word, _ in self._splitter.pre_tokenize_str(text)]

    @staticmethod
    def _spans(token: Any, char: str) -> bool:
        return f"\n{char}" in token.content or (token.lstrip and token.content[:1] == char)

    def _merges(self, char: str) -> bool:
        return any(newline + char in self._tokens for newline in _NEWLINES)

    @cached_property
    def _tokens(self) -> str:
        return "\0".join(self._vocabulary())


def _is_local(normalizer: Any) -> bool:
    """Whether a normalizer does to every line what it does to the whole text."""
    if normalizer is None:
        return True
    return all(map(_is_local_step, _steps(json.loads(normalizer.__getstate__()))))


def _steps(state: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [step for inner in state["normalizers"] for step in _steps(inner)]


def _is_local_step(state: dict[str, Any]) -> bool:
    if state["type"] == "Replace":
        pattern = state["pattern"].get("String", "\n")
        return "\n" not in pattern + state["content"]
    return state["type"] in _LOCAL


def _is_plain_bpe(model: Any) -> bool:
    """Whether a word's tokens are made by merging neighbours, and by nothing else."""
    return (
        type(model).__name__ == "BPE"
        and not model.continuing_subword_prefix
        and not model.end_of_word_suffix
        and (model.byte_fallback or not model.fuse_unk)
    )
