"""How much a run writes, by what `resd.loop.state` and `resd.models.save` put into files."""

from __future__ import annotations

from pathlib import Path
from shutil import disk_usage

from resd.config import DistillConfig, RunConfig


def disk(
    run: RunConfig, parameters: int, trained: int, b: int, trained_b: int, wide: int
) -> dict[str, int]:
    """Bytes of the model files of a run, at most, by kind.

    Args:
        run: the settings.
        parameters: of the model without adapters.
        trained: of those that are trained; fewer than all are adapters.
        b: bytes a number of the model while it computes.
        trained_b: of what is trained, while it computes.
        wide: of what is trained, for the optimiser.
    """
    adapters = run.model.lora is not None
    state = 3 * trained * wide  # weights, and AdamW's two averages
    average = isinstance(run.method, DistillConfig) and run.method.teacher.kind == "ema"
    teacher = trained * 4 if average else 0
    student = parameters * b + trained * trained_b if adapters else parameters * wide
    checkpoint = run.checkpoint
    # A new one is written before an old one goes.
    return {
        "checkpoints": (checkpoint.keep + 1) * (state + teacher),
        "evaluated students": (checkpoint.keep_evaluated + 1) * student,
        "final and best": 2 * student,
    }


def free_disk(place: Path) -> int | None:
    """Free bytes where a directory is, or would be made."""
    for parent in (place, *place.absolute().parents):
        if parent.exists():
            try:
                return disk_usage(parent).free
            except OSError:
                return None
    return None
