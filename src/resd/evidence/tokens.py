"""On which words of a response the loss falls, from the traces of a run."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from resd.errors import UserError
from resd.report.stories import read_steps
from resd.runs import read_config
from resd.tasks.registry import load_environment, load_examples


@cache
def loss_by_word(run: Path) -> list[dict[str, Any]]:
    """A row for each step, place of a word, and whether the word there is wrong.

    The loss is that of the first update on each batch, in nats; `traces.responses` says of how
    many responses a step. A finished run does not change: it is read once.

    Args:
        run: of a task that knows the right answers (`gold`).

    Returns:
        Rows of `step`, `word`, `wrong`, `loss` (a sum) and `tokens`; none without traces.

    Raises:
        UserError: the task does not know the right answers.
    """
    from resd.models.load import load_tokenizer

    config = read_config(run)
    environment = load_environment(config.task, config.task_args, config.seed)
    gold: Any = getattr(environment, "gold", None)
    if gold is None:
        raise UserError(f"task {config.task} has no gold(): nobody knows its wrong words")
    right = {e.id: str(gold(e)) for e in load_examples(environment, "train", config.task)}
    # Not that of final/: its weights are gone once a run was measured.
    tokenizer = load_tokenizer(config.model.path)
    found = []
    for traces in read_steps(run):
        rows: dict[tuple[int, bool], list[float]] = {}
        for story in traces.stories:
            if story.tokens is not None:
                answer = right[story.rollout["example"]]
                marks = word_marks(tokenizer, story.tokens["ids"], answer)
                for mark, loss in zip(marks, story.tokens["loss"], strict=True):
                    rows.setdefault(mark, []).append(loss)
        for (word, wrong), losses in sorted(rows.items()):
            where = {"step": traces.step, "word": word, "wrong": wrong}
            found.append({**where, "loss": sum(losses), "tokens": len(losses)})
    return found


def word_marks(tokenizer: Any, ids: Sequence[int], gold: str) -> list[tuple[int, bool]]:
    """For each token of a response: the number of its word, and whether that word is wrong.

    Wrong is what the right answer has not in that place. What ends the response counts as a word
    of its own: wrong if words are missing before it.
    """
    right = gold.split()
    texts = [tokenizer.decode(ids[:i], skip_special_tokens=True) for i in range(len(ids) + 1)]
    words = texts[-1].split()
    marks = []
    for before, after in itertools.pairwise(texts):
        # What adds no text ends the response, or is half a character.
        place = len(before.split()) if after == before else max(0, len(after.split()) - 1)
        said = words[place] if place < len(words) else None
        wanted = right[place] if place < len(right) else None
        marks.append((place, said != wanted))
    return marks
