"""`resd doctor`: the memory that a run needs, part by part, before a model is downloaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from resd.errors import UserError

_NOT = (
    "An estimate: activations, logits and the cache are those of the longest sequences that the "
    "settings allow; the CUDA context, fragmentation and a vLLM beside the trainer are not in it."
)
_ONE = (
    "resd trains in one process on one GPU today: several GPUs are not implemented. Their number "
    "here is the total divided by 80 GB, no plan of who holds what."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd doctor`."""
    parser.add_argument("config", nargs="?", type=Path, help="TOML of a run")
    parser.add_argument("--preset", help="built-in settings; see resd tasks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as train")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the memory of each part, the sum, and the GPU that holds it."""
    from resd.config import load_config
    from resd.models.memory import GB, Estimate, Part, estimate

    overrides = [("preset", options.preset)] if options.preset else []
    config = load_config(options.config, [*overrides, *map(_assignment, options.set)])
    needed: Estimate = estimate(config)
    phases = {
        "kept": needed.kept,
        "update": needed.update,
        "generation": needed.generation,
    }
    if options.json:
        parts = {part.name: part.bytes for phase in phases.values() for part in phase}
        print(
            json.dumps(
                {
                    "model": config.model.path,
                    "method": config.method.name,
                    "parameters": needed.parameters,
                    "trained": needed.trained,
                    "bytes": parts,
                    "total": needed.total,
                    "needs": needed.cards(),
                    "fits_one": needed.fits_one,
                }
            )
        )
        return 0

    def line(part: Part) -> str:
        return f"  {part.name:<20}{part.bytes / GB:>9.2f} GB   {part.formula}"

    width = config.model.compute_dtype or config.model.dtype
    print(
        f"{config.model.path}, {config.method.name}: {needed.parameters:,} parameters, "
        f"{needed.trained:,} trained, weights {config.model.dtype}, compute {width}"
    )
    titles = ("all the time", "and during the update", "or during generation")
    for title, phase in zip(titles, phases.values(), strict=True):
        print(title)
        print("\n".join(map(line, phase)))
    print(f"at most: {needed.total / GB:.2f} GB: {needed.cards()}")
    print(_NOT)
    if not needed.fits_one:
        print(_ONE)
    return 0


def _assignment(text: str) -> tuple[str, Any]:
    from resd.cli.main import parse_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"expected KEY=VALUE, found {text!r}")
    return key.removeprefix("--"), parse_value(value)
