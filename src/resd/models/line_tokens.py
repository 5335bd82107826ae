"""Token ids of long texts, of which every line is read once.

The prompts of a step share most of their text (the playbook), and reading it again for each is
most of what building them costs. A text is cut between lines where the tokenizer cuts anyway, so
that the ids are those of the whole text; where that cannot be shown, a text is read whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
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
_STARTS = tuple(map(chr, range(0x21, 0x7F)))
# A newline as vocabularies write it: as it is, byte by byte, and as a byte that has no token.
_NEWLINES = ("\n", "\u010a", "<0x0A>")


class LineTokens:
    """Reads texts line by line, and remembers the lines' token ids.

    Args:
        tokenizer: of `transformers`. One whose parts are not known reads every text whole.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        # Lines of now, and lines of before: memory has a bound that costs nothing at each look.
        # The key is the line, and whether the names of special tokens are text in it.
        self._now: dict[tuple[str, bool], Sequence[int]] = {}
        self._before: dict[tuple[str, bool], Sequence[int]] = {}
        self._chars = 0

    def ids(self, text: str, special_as_text: bool = False) -> list[int]:
        """Token ids of a text, as the tokenizer gives them without tokens of its own.

        Args:
            text: of any length.
            special_as_text: whether the names of special tokens are text like any other.
        """
        lines = [text] if len(text) < _SHORT else list(self._lines(text))
        known = {line: self._look(line, special_as_text) for line in lines}
        missing = [line for line, ids in known.items() if ids is None]
        if missing == [text]:
            known[text] = self._whole(text, special_as_text)
        elif missing:
            known |= zip(missing, self._read(missing, special_as_text), strict=True)
        found: list[int] = []
        for line in lines:
            found += known[line] or ()
        for line in missing:
            self._keep(line, special_as_text, known[line] or ())
        return found

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

    def _lines(self, text: str) -> Iterator[str]:
        """The lines of a text, joined where the tokenizer may read across their ends."""
        begin = end = 0
        while (end := text.find("\n", end) + 1) > 0:
            blank = text[max(0, end - 2) : end - 1].strip() == ""
            if not blank and text[end : end + 1] in self.starts:
                yield text[begin:end]
                begin = end
        yield text[begin:]

    def _whole(self, text: str, special_as_text: bool) -> list[int]:
        chosen = {"split_special_tokens": True} if special_as_text else {}
        return list(self._tokenizer(text, add_special_tokens=False, **chosen)["input_ids"])

    def _read(self, texts: Sequence[str], special_as_text: bool) -> list[list[int]]:
        """Many texts at once, without what only offsets need: half the time."""
        backend = self._tokenizer.backend_tokenizer
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = special_as_text or self._tokenizer.split_special_tokens
        read = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in read]

    @cached_property
    def starts(self) -> frozenset[str]:
        """Characters before which a new line is read on its own; none if that is not sure."""
        try:
            found = line_starts(self._tokenizer)
            # The parts were asked; this asks the whole, as it is called.
            ends = (_ENDS[i % len(_ENDS)] for i in range(len(_STARTS)))
            lines = [f"{start}a 1{end}\n" for start, end in zip(sorted(found), ends, strict=False)]
            for special_as_text in (False, True):
                read = [i for ids in self._read(lines, special_as_text) for i in ids]
                if read != self._whole("".join(lines), special_as_text):
                    return frozenset()
        except Exception:  # a tokenizer made of other parts: nothing is known of it
            return frozenset()
        return found


def line_starts(tokenizer: Any) -> frozenset[str]:
    """Characters before which a tokenizer reads a new line as if the text began there.

    A newline and such a character fall into two words of the pre-tokenizer, and a model reads each
    word on its own; or they fall into one, but no token of a BPE's vocabulary holds both, so that
    nothing is ever merged across. Tried on lines of every kind, not on the text itself.

    Args:
        tokenizer: a fast one of `transformers`.
    """
    backend = tokenizer.backend_tokenizer
    normalizer, splitter, model = backend.normalizer, backend.pre_tokenizer, backend.model
    if getattr(model, "dropout", None) or not _is_local(normalizer):
        return frozenset()

    def words(text: str) -> list[str]:
        text = text if normalizer is None else normalizer.normalize_str(text)
        return [text] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(text)]

    parted, joined = _tried(words)
    if joined and _is_plain_bpe(model):
        vocabulary = "\0".join(tokenizer.get_vocab())
        parted |= {s for s in joined if not any(f"{n}{s}" in vocabulary for n in _NEWLINES)}
    for added in tokenizer.added_tokens_decoder.values():
        after = {s for s in parted if f"\n{s}" in added.content}
        # It takes the white space before it.
        parted -= after | ({added.content[:1]} if added.lstrip else set())
    return frozenset(parted)


def _tried(words: Callable[[str], list[str]]) -> tuple[set[str], set[str]]:
    """Starts of a line that always begin a word, and those that always go on with one."""
    parted, joined = set(_STARTS), set(_STARTS)
    lefts = {end: words(f"{end}\n") for end in _ENDS}
    tried = [(end, tail) for end in _ENDS for tail in _USUAL_TAILS]
    tried += [(end, tail) for end in _USUAL_ENDS for tail in _TAILS]
    for start in _STARTS:
        rights = {tail: words(start + tail) for tail in _TAILS}
        for end, tail in dict.fromkeys(tried):
            left, right = lefts[end], rights[tail]
            both = words(f"{end}\n{start}{tail}")
            if both != left + right:
                parted.discard(start)
            if both != [*left[:-1], left[-1] + right[0], *right[1:]]:
                joined.discard(start)
    return parted, joined


def _is_local(normalizer: Any) -> bool:
    """Whether a normalizer does to every line what it does to the whole text."""
    if normalizer is None:
        return True
    return all(map(_is_local_part, _parts(json.loads(normalizer.__getstate__()))))


def _parts(state: dict[str, Any]) -> Iterable[dict[str, Any]]:
    if state["type"] != "Sequence":
        return [state]
    return [part for inner in state["normalizers"] for part in _parts(inner)]


def _is_local_part(state: dict[str, Any]) -> bool:
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
