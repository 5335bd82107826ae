"""Experiments as runs: dialects x seeds x variants, the same run once whoever asks for it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from resd.compare.plan import Run, check_directory
from resd.compare.variants import Variant
from resd.config import load_config
from resd.config.load import merge
from resd.errors import UserError
from resd.evidence.registry import Experiment, settings
from resd.runs import identity
from resd.tasks.lab.dialect import Dialect

# A run of the lab takes less than a minute: one that breaks off starts again.
COMMON = {
    "traces": False,
    "checkpoint": {"every": 1_000_000, "keep": 1, "keep_evaluated": 1, "background": False},
}
# Enough to see that there is a table, on dialects that are not reported.
QUICK_DIALECTS, QUICK_SEEDS = [5, 6, 7], [0]
QUICK = {
    "train": {"steps": 3, "batch_size": 8},
    "evaluation": {"every": 1, "samples": 2, "max_examples": 8, "retention_tokens": 32},
    "method": {"anchors": {"number": 16, "max_new_tokens": 32}},
}
_AFTER = re.compile(r"dialect \+ (\d)")
OTHER = "facts of another dialect"
# What does not touch a run: reports, command lines, the code of this command.
_BESIDE = ("evidence", "report", "compare", "cli", "bridge", "presets")


@dataclass(frozen=True)
class Planned:
    """One run of an experiment; experiments that share it have the same `run.path`."""

    experiment: str
    label: str
    dialect: int
    seed: int
    run: Run


def plan(
    experiments: Mapping[str, Experiment], name: str, output: Path, quick: bool
) -> list[Planned]:
    """The runs of an experiment, seed by seed and dialect by dialect.

    So what is finished early covers every variant.

    Args:
        experiments: all of them, for `same_as`.
        name: of the one.
        output: directory.
        quick: a few steps on few dialects.

    Raises:
        UserError: a setting is wrong, or a directory holds something else.
    """
    experiment = experiments[name]
    dialects = QUICK_DIALECTS if quick else experiment.dialect_numbers
    seeds = QUICK_SEEDS if quick else experiment.seed_numbers
    given = {v.label: settings(experiments, name, v) for v in experiment.variants}
    found = []
    for seed in seeds:
        for dialect in dialects:
            for label, values in given.items():
                try:
                    run = _run(label, values, dialect, seed, output, quick)
                except UserError as error:
                    raise UserError(f"experiment {name}, variant {label!r}: {error}") from None
                check_directory(run)
                found.append(Planned(name, label, dialect, seed, run))
    return found


def _run(
    label: str,
    values: Mapping[str, Any],
    dialect: int,
    seed: int,
    output: Path,
    quick: bool,
) -> Run:
    merged = merge(COMMON, values)
    if quick:
        merged = merge(merged, QUICK)
        if merged["evaluation"].get("retention"):
            merged["evaluation"]["retention"] = 4
    merged = merge(merged, {"task_args": {"dialect": dialect}})
    overrides = [(key, _placed(value, dialect)) for key, value in identity.flat(merged, "")]
    config = load_config(None, [*overrides, ("seed", seed)])
    # Without what is as it is by default: a new setting makes no other run of it. The method's
    # name stands before the digest.
    made_of = {
        "settings": config.model_dump(mode="json", exclude_defaults=True),
        "model": _model_digest(config.model.path),
    }
    key = hashlib.blake2b(json.dumps(made_of, sort_keys=True).encode(), digest_size=5).hexdigest()
    path = output / "runs" / f"{config.method.name}-d{dialect}-s{seed}-{key}"
    words = (*overrides, ("seed", seed), ("output", str(path)))
    shown = Variant(label, (("method.name", config.method.name),))
    return Run(shown, seed, config, None, words, path)


def _placed(value: Any, dialect: int) -> Any:
    """A value with what depends on the dialect put in.

    `dialect + N` is the Nth after it among the ten of its decade, in a circle: a stream of
    reported dialects holds reported ones alone.
    """
    if isinstance(value, Mapping):
        return {key: _placed(item, dialect) for key, item in value.items()}
    if isinstance(value, list):
        return [_placed(item, dialect) for item in value]
    if value == OTHER:
        return Dialect.numbered(dialect + 100).facts()
    match = _AFTER.fullmatch(value) if isinstance(value, str) else None
    return value if match is None else dialect // 10 * 10 + (dialect + int(match[1])) % 10


@cache
def _model_digest(path: str) -> str:
    """Digest of a student's weights: the runs of another base model are other runs."""
    lab = Path(str(resources.files("resd.tasks.lab") / "model"))
    folder = lab if path == "lab" else Path(path)
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return " ".join(identity.digest(file) for file in files)


@cache
def code_version() -> str:
    """Digest of the source that a run depends on, model weights apart."""
    root = Path(str(resources.files("resd")))
    hashed = hashlib.blake2b(digest_size=5)
    for file in sorted(root.rglob("*")):
        inside = file.relative_to(root)
        counts = file.suffix in (".py", ".jinja", ".txt") and inside.parts[0] not in _BESIDE
        if counts:
            hashed.update(f"{inside.as_posix()}\0".encode())
            hashed.update(file.read_bytes())
    return hashed.hexdigest()
