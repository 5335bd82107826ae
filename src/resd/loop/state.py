"""What a checkpoint holds: everything that the next step depends on."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resd.errors import UserError
from resd.loop.update import PolicyUpdate
from resd.methods import Method
from resd.models.load import load_weights
from resd.runs import atomic
from resd.runs.seeds import random_state, set_random_state

VERSION = 2


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: the last one that was done.
        solved: ids of examples that passed since the batch's first iteration.
        evaluations: the metrics of the rank rule, one row an evaluation.
        totals: rollouts and counts by reason, over the run.
    """

    step: int = 0
    solved: set[str] = field(default_factory=set)
    evaluations: list[dict[str, float]] = field(default_factory=list)
    totals: Counter[str] = field(default_factory=Counter)


def save_state(
    path: Path, progress: Progress, model: Any, update: PolicyUpdate, method: Method[Any]
) -> None:
    """Fill the directory of a checkpoint."""
    model.save_pretrained(path / "model")
    atomic.barrier("checkpoint: model")
    tensors = {**update.state_dict(), "random": random_state()}
    torch.save({**tensors, "method": method.tensors()}, path / "state.pt")
    atomic.barrier("checkpoint: tensors")
    state = {
        "version": VERSION,
        "step": progress.step,
        "solved": sorted(progress.solved),
        "evaluations": progress.evaluations,
        "totals": dict(progress.totals),
        "method": method.state_dict(),
    }
    (path / "state.json").write_text(json.dumps(state), encoding="utf-8")


def restore_state(path: Path, model: Any, update: PolicyUpdate, method: Method[Any]) -> Progress:
    """Put a checkpoint into model, optimiser and method.

    Raises:
        UserError: it is damaged.
    """
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if state["version"] != VERSION:
            raise ValueError(f"a state of version {state['version']}, expected {VERSION}")
        tensors = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
        load_weights(model, path / "model")
        update.load_state_dict(tensors)
        method.load_tensors(tensors["method"])
        method.load_state_dict(state["method"])
        progress = Progress(
            int(state["step"]), set(state["solved"]), state["evaluations"], Counter(state["totals"])
        )
        set_random_state(tensors["random"])
    except Exception as error:  # a damaged file fails in as many ways as there are formats
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise UserError(
            f"checkpoint {path} is damaged ({what}); remove it and resume again: the run goes "
            "on from the checkpoint before, or from its start"
        ) from None
    return progress
