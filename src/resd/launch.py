"""How a run finds out that it is one of several processes."""

from __future__ import annotations

import os
from collections.abc import Mapping

from resd.errors import UserError


def launched(environment: Mapping[str, str] | None = None) -> int:
    """How many processes torchrun started; 1 without it.

    Raises:
        UserError: a launcher set up something else than a run of several processes.
    """
    environment = os.environ if environment is None else environment
    world = environment.get("WORLD_SIZE", "1")
    if not world.isdigit() or int(world) < 1:
        raise UserError(f"WORLD_SIZE is {world!r}: unset it, or start with torchrun")
    if "ACCELERATE_MIXED_PRECISION" in environment and "RANK" not in environment:
        raise UserError(
            "accelerate launch started one process only; start several with torchrun "
            "--nproc-per-node N -m resd.cli train ..., one with resd train"
        )
    missing = [
        n for n in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if n not in environment
    ]
    if int(world) > 1 and missing:
        raise UserError(
            f"WORLD_SIZE is {world}, but {', '.join(missing)} is not set: start with torchrun "
            "--nproc-per-node N -m resd.cli train ..."
        )
    return int(world)


def process_number(environment: Mapping[str, str] | None = None) -> int:
    """Which process this is; 0 without torchrun."""
    environment = os.environ if environment is None else environment
    rank = environment.get("RANK", "0") if environment.get("WORLD_SIZE", "1") != "1" else "0"
    return int(rank) if rank.isdigit() else 0
