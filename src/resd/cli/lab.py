"""`resd lab`: remake and measure the lab's base model."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from resd.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd lab`."""
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    pretrain = actions.add_parser("pretrain", help="remake the base model (about an hour)")
    pretrain.add_argument("--output", type=Path, required=True, help="directory for the model")
    pretrain.add_argument(
        "--steps", type=int, default=None, help="most batches a stage; default: all"
    )
    pretrain.add_argument("--seed", type=int, default=0, help="of tokenizer and weights")
    pretrain.add_argument("--threads", type=int, default=1, help="CPU threads")
    pretrain.set_defaults(run=_pretrain)
    gates = actions.add_parser("gates", help="measure the gates of a base model")
    gates.add_argument("model", nargs="?", default="lab", help="directory; default: as shipped")
    gates.add_argument("--number", type=int, default=1000, help="prompts per gate")
    gates.set_defaults(run=_gates)
    worlds = actions.add_parser("worlds", help="how hard its worlds are: what a guess gets in each")
    worlds.set_defaults(run=_worlds)


def _pretrain(options: argparse.Namespace) -> int:
    from resd.lab_base.pretrain import PretrainConfig, pretrain

    config = PretrainConfig(seed=options.seed, threads=options.threads)
    if options.steps is not None:
        config.stages = tuple(
            replace(stage, steps=min(stage.steps, options.steps)) for stage in config.stages
        )
    if options.output.is_dir() and any(options.output.iterdir()):
        raise UserError(f"output directory {options.output} is not empty")
    pretrain(options.output, config)
    return 0


# Arguments of the task, one world each.
WORLDS: tuple[dict[str, Any], ...] = (
    {},
    *({"known": known} for known in range(1, 6)),
    {"commands": 2},
    {"commands": 2, "known": 5},
    {"commands": 3},
    {"house": "birch"},
    {"noise": 0.1},
    {"inference": True},
)


def _worlds(options: argparse.Namespace) -> int:
    from resd.tasks.lab import LabEnvironment

    print(f"{'task_args':36} a uniform guess passes")
    for arguments in WORLDS:
        shown = " ".join(f"{key}={value}" for key, value in arguments.items()) or "(default)"
        print(f"{shown:36} 1 in {round(1 / LabEnvironment(0, **arguments).uniform_guess()):,}")
    return 0


def _gates(options: argparse.Namespace) -> int:
    from resd.config import ModelConfig
    from resd.lab_base.gates import describe_gates
    from resd.lab_base.pretrain import final_gates
    from resd.models.load import load_model, load_tokenizer

    tokenizer = load_tokenizer(options.model)
    model = load_model(ModelConfig(path=options.model))
    gates = final_gates(model, tokenizer, options.number)
    text, passed = describe_gates(gates)
    print(text)
    return 0 if passed else 1
