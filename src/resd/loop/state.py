"""What a checkpoint holds: everything that the next step depends on.

state.json   step, what the method remembers, evaluations and counts
random.pt    the states of the global random number generators
tensors/     trained weights, optimiser and a moving teacher, each process its shards
             (torch.distributed.checkpoint: any number of processes can read them)

What does not move is not in it: frozen weights and a frozen teacher come from the model that the
run started from.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resd.backend import Backend
from resd.errors import UserError
from resd.loop.update import PolicyUpdate
from resd.methods import Method
from resd.runs import atomic
from resd.runs.seeds import random_state, set_random_state

VERSION = 3


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: the last one that was done.
        solved: ids of examples that passed since the batch's first iteration.
        evaluations: the metrics of the rank rule, one row an evaluation.
        totals: rollouts and counts by reason, over the run.
        health: what the monitor of the run's health remembers.
    """

    step: int = 0
    solved: set[str] = field(default_factory=set)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)
    health: dict[str, Any] = field(default_factory=dict)


def state_writer(
    backend: Backend, progress: Progress, update: PolicyUpdate, method: Method[Any], *, copy: bool
) -> Callable[[Path], None]:
    """A function that fills the directory of a checkpoint with the state as it is now.

    Args:
        backend: writes the tensors; every process calls what is returned.
        progress: of the run.
        update: weights and optimiser.
        method: what it remembers, and its teacher.
        copy: the function is called later, while training goes on.
    """
    state = json.dumps(
        {
            "version": VERSION,
            "step": progress.step,
            "solved": sorted(progress.solved),
            "evaluations": progress.evaluations,
            "totals": dict(progress.totals),
            "health": progress.health,
            "updates": update.updates,
            "method": method.state_dict(),
        }
    )
    random = random_state()
    tensors = {**update.tensors(), "method": method.tensors()}
    if copy:
        tensors = backend.copied(tensors)

    def fill(path: Path) -> None:
        backend.save(path / "tensors", tensors)
        atomic.barrier("checkpoint: tensors")
        if backend.main:
            torch.save(random, path / "random.pt")
            atomic.barrier("checkpoint: random")
            (path / "state.json").write_text(state, encoding="utf-8")

    return fill


def restore_state(
    path: Path, backend: Backend, update: PolicyUpdate, method: Method[Any]
) -> Progress:
    """Put a checkpoint into model, optimiser and method.

    Raises:
        UserError: it is damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            raise ValueError(f"a state of version {state['version']}, expected {VERSION}")
        random = torch.load(path / "random.pt", weights_only=True, map_location="cpu")
        update.expect(backend.names(path / "tensors"))
        tensors = {**update.tensors(), "method": method.tensors()}
        backend.load(path / "tensors", tensors)
        update.restored(int(state["updates"]))
        method.load_tensors(tensors["method"])
        method.load_state_dict(state["method"])
        progress = Progress(
            int(state["step"]),
            set(state["solved"]),
            state["evaluations"],
            Counter(state["totals"]),
            state.get("health", {}),  # an older run was not watched
        )
        set_random_state(random)
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"checkpoint {path} is damaged ({what}); remove it and resume again: the run goes "
            "on from the checkpoint before, or from its start"
        ) from None
    return progress
