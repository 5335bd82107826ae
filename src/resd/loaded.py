"""A run on disk for a notebook: `resd.load_run("runs/lab-resd-s0")`."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.context import Playbook
from resd.errors import UserError
from resd.report.tables import frame, lesson_rows, metric_rows, rollout_rows
from resd.runs import read_config
from resd.runs.traces import playbook_state, trace_files


class Run:
    """What a run left; read when it is asked for, and then kept.

    Attributes:
        path: the directory.
        config: its configuration.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: RunConfig = read_config(path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}: {self.config.method.name} on {self.config.task})"

    @property
    def complete(self) -> bool:
        """Whether it came to its end."""
        return (self.path / "done.json").is_file()

    @cached_property
    def metrics(self) -> Any:
        """A data frame: a row a step and a row an evaluation, by `step`."""
        return frame(list(metric_rows(self.path)))

    @cached_property
    def rollouts(self) -> Any:
        """A data frame: a row a kept rollout, with reflection, teacher's prompt, token numbers."""
        return frame(list(rollout_rows(self.path)))

    @cached_property
    def lessons(self) -> Any:
        """A data frame: a row a lesson that the playbook ever held: birth, last counts, death."""
        return frame(list(lesson_rows(self.path)))

    def playbook_at(self, step: int) -> Playbook:
        """The playbook after the context update of a step; who voted for its lessons is left out.

        Raises:
            UserError: the run keeps no playbook, or no traces of that step.
        """
        state = playbook_state(self.path, step)
        if state is None:
            steps = [number for number, _ in trace_files(self.path)]
            there = f"it has those of steps {steps[0]} to {steps[-1]}" if steps else "it has none"
            raise UserError(f"{self.path} has no traces of a playbook at step {step}; {there}")
        playbook = Playbook(getattr(self.config.method, "playbook", None))
        playbook.load_state_dict(json.loads(json.dumps(state)))
        return playbook

    def model(self, which: str = "best") -> Any:
        """The trained model, by transformers' AutoModelForCausalLM.

        Args:
            which: `best` by the rank rule, or `final`.

        Raises:
            UserError: the run has no such model (yet).
        """
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(self._place(which))

    def tokenizer(self, which: str = "best") -> Any:
        """The tokenizer beside a model; see `model`."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(self._place(which))

    def _place(self, which: str) -> Path:
        if which not in ("best", "final"):
            raise UserError(f"a run has a best and a final model, not {which!r:.80}")
        if not (self.path / which).is_dir():
            raise UserError(f"{self.path} has no {which} model yet: the run is not complete")
        return self.path / which
