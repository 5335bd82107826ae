"""Train as `resd train` does, and note on which tokens of a response the loss falls.

    python -m resd.evidence.by_token '[["KEY", VALUE], ...]'

Before the first update on each batch the loss of every token of every sample that teaches is
computed once more, and written to by_token.jsonl of the run: a row a step, a word of the response,
and whether that word is wrong (another than the right answer has in its place). What is trained is
the same as without.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from resd.config import load_config
from resd.errors import UserError
from resd.evidence.measure import TOKENS_FILE
from resd.loop.setup import prepare
from resd.loop.trainer import Trainer
from resd.loop.update import token_log_probs
from resd.loop.view import MuteView
from resd.methods.base import Notes, StepReport, Tokens
from resd.models.head import LogitHead, response_states
from resd.runs import RunDirectory, atomic
from resd.types import Rollout, TrainingSample


def main(settings: str) -> int:
    """Train a run with these settings, as JSON; returns the exit code."""
    config = load_config(None, [(key, value) for key, value in json.loads(settings)])
    output = config.output
    if output is None:
        raise UserError("output is not set: it names the run directory")
    if (output / "config.toml").is_file():
        # It broke off: what it noted does not fit a checkpoint, and a run takes a minute.
        atomic.remove_directory(output)
    with closing(prepare(config)) as setup:
        run = RunDirectory.create(output, config)
        try:
            trainer = Trainer(setup, run, MuteView())
            watch(trainer, output / TOKENS_FILE)
            trainer.train()
        finally:
            run.close()
    return 0


def watch(trainer: Trainer, file: Path) -> None:
    """Let a trainer's method note the loss by token whenever it makes training samples.

    Args:
        trainer: of a task that knows the right answers (`gold`).
        file: gets the rows.

    Raises:
        UserError: the task does not know them.
    """
    method, gold = trainer.method, getattr(trainer.setup.environment, "gold", None)
    if gold is None:
        raise UserError(f"task {trainer.config.task} has no gold(): nobody knows its wrong tokens")
    make = method.samples

    def samples(
        batch: Sequence[Rollout], notes: Notes, report: StepReport
    ) -> list[TrainingSample | None]:
        made = make(batch, notes, report)
        pairs = [(r, s) for r, s in zip(batch, made, strict=True) if s is not None]
        if pairs:
            losses = token_losses(trainer, [sample for _, sample in pairs])
            rows: dict[tuple[int, bool], list[float]] = {}
            for (rollout, sample), loss in zip(pairs, losses, strict=True):
                marks = word_marks(trainer.setup.tokenizer, sample, str(gold(rollout.example)))
                for mark, value in zip(marks, loss, strict=True):
                    rows.setdefault(mark, []).append(value)
            for (word, wrong), values in sorted(rows.items()):
                where = {"step": trainer.progress.step, "word": word, "wrong": wrong}
                row = {**where, "loss": sum(values), "tokens": len(values)}
                atomic.append_line(file, json.dumps(row))
        return made

    method.samples = samples  # type: ignore[method-assign]


@torch.no_grad()
def token_losses(trainer: Trainer, samples: Sequence[TrainingSample]) -> list[list[float]]:
    """The loss of each token of each sample, before any update on them."""
    method, student = trainer.method, trainer.student.model
    scores = method.score(samples)
    head = LogitHead(student, whole=method.services.whole_logits)
    prompts = [sample.prompt_ids for sample in samples]
    responses = [sample.response_ids for sample in samples]
    logits = head(response_states(head, prompts, responses, trainer.pad_id))
    ids = torch.tensor([token for response in responses for token in response])
    now = token_log_probs(logits, ids.to(logits.device))
    theirs = None if scores is None else scores.head(scores.hidden)
    advantages = torch.cat([now.new_full((len(s.response_ids),), s.advantage) for s in samples])
    loss = method.per_token(Tokens(now, now, advantages, theirs), logits, {})
    return [part.tolist() for part in loss.split([len(response) for response in responses])]


def word_marks(tokenizer: Any, sample: TrainingSample, gold: str) -> list[tuple[int, bool]]:
    """For each token of the response: the number of its word, and whether that word is wrong.

    What ends the response counts as a word of its own: wrong if words are missing before it.
    """
    right, ids = gold.split(), list(sample.response_ids)
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


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1]))
    except UserError as error:
        print(f"resd: {error}", file=sys.stderr)
        sys.exit(2)
