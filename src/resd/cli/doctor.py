"""`resd doctor` and `resd train --dry-run`: what a run needs, before anything is loaded.

Of the machine itself, without a run, see `resd.cli.machine`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resd.errors import UserError

if TYPE_CHECKING:
    from resd.config import RunConfig
    from resd.models.memory import Estimate, Memory
    from resd.models.moments import Part

_NOT = (
    "An estimate for the longest sequences that the settings allow, so at most; the CUDA context, "
    "fragmentation and imports are not in it."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd doctor`."""
    parser.description = "Without a run: what this machine has. With one: the memory it needs."
    parser.add_argument("config", nargs="?", type=Path, help="TOML of a run")
    parser.add_argument("--preset", help="built-in settings; see resd tasks")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as train")
    parser.add_argument("--processes", type=int, default=1, help="that share the run, one a GPU")
    parser.add_argument(
        "--calibrate", action="store_true", help="run one step here, and say what it took"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="print JSON")
    form.add_argument("--markdown", action="store_true", help="print a table")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print what the machine has; of a run its memory, disk, tokens a step, and a step's time."""
    if options.processes < 1:
        raise UserError(f"--processes must be at least 1, found {options.processes}")
    if options.config is None and not (options.preset or options.set or options.calibrate):
        if options.markdown or options.processes != 1:
            raise UserError("--markdown and --processes are of a run: name it, as in --preset lab")
        from resd.cli.machine import show_machine

        return show_machine(as_json=options.json)
    from resd.config import load_config
    from resd.models.check import check_attention
    from resd.models.memory import Memory, as_rows

    overrides = [("preset", options.preset)] if options.preset else []
    config = load_config(options.config, [*overrides, *map(_assignment, options.set)])
    check_attention(config, installed=False)
    memory = Memory(config)
    found = memory.estimate(options.processes)
    if options.markdown:
        print(markdown(memory, options.processes))
    elif options.json:
        plan = memory.plan()
        known = {
            "model": config.model.path,
            "method": config.method.name,
            **as_rows(found),
            "needs": str(plan) if plan else None,
            "disk": _disk(config, memory),
            "tokens": tokens_a_step(config, memory),
        }
        print(json.dumps(known))
    else:
        print(report(config, memory, found))
    if options.calibrate:
        from resd.loop.calibrate import calibrate

        print(calibrate(config))
    elif not (options.json or options.markdown):
        print("Time is not estimated: --calibrate runs one step on this machine.")
    return 0


def dry_run(config: RunConfig) -> int:
    """Everything that `resd train` checks before it loads the model, and the report.

    Raises:
        UserError: the run cannot work.
    """
    from resd.config.paths import anchored
    from resd.loop.setup import prepare
    from resd.loop.stream import Course
    from resd.models.check import check_disk, usable_device
    from resd.models.load import read_model_config
    from resd.models.memory import Memory
    from resd.models.sizes import skeleton
    from resd.runs.directory import check_new

    config = anchored(config, Path.cwd())
    if config.output is not None:
        check_new(config.output)
    setup = prepare(config)
    setup.close()
    if os.environ.get("RANK", "0") != "0":
        return 0
    memory = Memory(config, skeleton(read_model_config(config.model), config.model))
    device, processes = usable_device(config)
    print(report(config, memory, memory.estimate(processes, device.type)))
    steps = Course(setup.stages, config.train, config.seed).steps
    print(f"{steps} steps on {len(setup.train)} examples, evaluated on {len(setup.test)}")
    for warning in (*setup.warnings, *check_disk(memory)):
        print(f"warning: {warning}")
    print("Nothing was loaded, nothing was written.")
    return 0


def report(config: RunConfig, memory: Memory, found: Estimate) -> str:
    """An estimate for people."""
    from resd.models.memory import CARDS, GB, PROCESSES

    def line(part: Part) -> str:
        return f"    {part.name:<22}{part.bytes / GB:>9.2f} GB   {part.formula}"

    width = config.model.compute_dtype or config.model.dtype
    each = "one process" if found.processes == 1 else f"each of {found.processes} processes"
    lines = [
        f"{config.model.path}, {config.method.name}: {found.parameters:,} parameters, "
        f"{found.trained:,} trained, weights {config.model.dtype}, compute {width}",
        f"memory of {each}, b = {memory.sizes.b}:",
        f"  all the time           {found.base / GB:>11.2f} GB",
        *map(line, found.kept),
    ]
    for moment, parts in found.moments.items():
        lines += [f"  and for {moment:<15}{found.at(moment) / GB:>11.2f} GB", *map(line, parts)]
    lines.append(f"  at most                {found.total / GB:>11.2f} GB   ({found.worst})")
    if found.vllm:
        lines.append(f"  vLLM beside it: of a GPU {found.vllm}")
    for part in found.host:
        lines.append(f"  in host memory         {part.bytes / GB:>11.2f} GB   {part.name}")
    plan, card = memory.plan(), found.card()
    lines += [
        f"fits {each}: {f'a GPU of {card} GB' if card else f'no GPU of up to {CARDS[-1]} GB'}",
        f"least: {plan or f'more than {PROCESSES[-1]} GPUs'}",
        f"less with: {found.advice()}",
        _NOT,
    ]
    disk = _disk(config, memory)
    each_kind = ", ".join(f"{name} {size / GB:.1f}" for name, size in disk.items())
    lines.append(f"disk: at most {sum(disk.values()) / GB:.1f} GB ({each_kind})")
    tokens = ", ".join(f"{name} {n:,}" for name, n in tokens_a_step(config, memory).items())
    lines.append(f"tokens a step, at most: {tokens}")
    return "\n".join(lines)


def markdown(memory: Memory, processes: int) -> str:
    """A table of the memory of each process: what is kept, and the moments."""
    from resd.models.memory import GB

    found = memory.estimate(processes)
    rows = ["| part | GB |", "|---|---:|"]
    rows += [f"| {part.name} | {part.bytes / GB:.1f} |" for part in found.kept if part.bytes]
    for moment, parts in found.moments.items():
        what = ", ".join(f"{p.name} {p.bytes / GB:.1f}" for p in parts if p.bytes >= GB // 20)
        if found.at(moment) >= GB // 20:
            rows.append(f"| for {moment}: {what} | {found.at(moment) / GB:.1f} |")
    where = "on one" if processes == 1 else f"on each of {processes}"
    rows.append(f"| **at most** ({found.worst}), {where} | **{found.total / GB:.1f}** |")
    if found.vllm:
        rows.append(f"| vLLM beside it, of the card: {found.vllm} | |")
    rows += [f"| in host memory: {part.name} | {part.bytes / GB:.1f} |" for part in found.host]
    card = found.card()
    rows.append(f"| **card** | **{f'{card} GB' if card else 'none of up to 141 GB'}** |")
    return "\n".join(rows)


def tokens_a_step(config: RunConfig, memory: Memory) -> dict[str, int]:
    """Most tokens of a training step, by what is done with them."""
    from resd.config import DistillConfig, ResdConfig

    method, rollout, window = config.method, config.rollout, memory.sizes.window
    rollouts = config.train.batch_size * method.most_rollouts
    student = min(rollout.max_prompt_tokens + rollout.max_new_tokens, window)
    found = {"rollouts": rollouts * rollout.max_new_tokens}
    if isinstance(method, ResdConfig):
        found["reflections"] = rollouts * method.reflection_tokens
        found["curations"] = rollouts * method.curation_tokens
    if isinstance(method, DistillConfig):
        longest = min(method.max_teacher_tokens + rollout.max_new_tokens, window)
        found["teacher's pass"] = rollouts * longest
    found["update"] = rollouts * student * config.train.updates_per_batch
    return found


def _disk(config: RunConfig, memory: Memory) -> dict[str, int]:
    from resd.runs.disk import disk

    sizes = memory.sizes
    return disk(config, sizes.bare, sizes.trained, sizes.b, sizes.trained_b, sizes.wide)


def _assignment(text: str) -> tuple[str, Any]:
    from resd.cli.main import parse_value

    key, equals, value = text.partition("=")
    if not equals or not key:
        raise UserError(f"expected KEY=VALUE, found {text!r}")
    return key.removeprefix("--"), parse_value(value)
