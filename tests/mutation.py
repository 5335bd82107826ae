"""Break the code in many small ways and count how many of them the tests notice.

`mutation.sh` runs this on a copy of the working tree. The mutants are cosmic-ray's; each is tried
in a fork of a process that has torch imported, which takes a tenth of the time of a new one.
"""

from __future__ import annotations

import argparse
import ast
import math
import os
import random
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import tomllib
from cosmic_ray.commands import init
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "resd"
# Without the plugins that one short run in one process has no use for.
OPTIONS = ["-x", "-q", "-W", "ignore", "--no-header", "--hypothesis-seed", "0", "-m", "not slow"]
for plugin in ("cacheprovider", "xdist", "anyio"):
    OPTIONS += ["-p", f"no:{plugin}"]
OPTIONS += ["-o", "addopts="]
# A mutant that takes so much longer than the code as it is hangs.
SECONDS, TIMES = 20.0, 4.0


def main() -> int:
    """Print killed, survived and total of every module, and the survivors."""
    parser = argparse.ArgumentParser(prog="mutation.sh")
    parser.add_argument("words", nargs="*", help="modules whose path contains one of them")
    parser.add_argument("--sample", type=int, default=15, help="mutants a module")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    options = parser.parse_args()
    tests = tomllib.loads((ROOT / "tests" / "mutation.toml").read_text())["tests"]
    for gone in _gone(tests):
        parser.error(f"mutation.toml names {gone}, which is not there")
    modules = {
        path: _tests_of(path, tests)
        for path in sorted(SOURCE.rglob("*.py"))
        if _tests_of(path, tests) and _wanted(path, options.words)
    }
    if not modules:
        parser.error(f"no module of mutation.toml has a path with {' or '.join(options.words)}")
    _prepare()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    totals = [0, 0]
    for path, files in modules.items():
        killed, total = _module(path, files, options.sample, options.seed)
        totals = [totals[0] + killed, totals[1] + total]
    print(f"all: {totals[0]} killed of {totals[1]} ({totals[0] / max(1, totals[1]):.0%})")
    return 0


def _prepare() -> None:
    import accelerate  # noqa: F401
    import pytest  # noqa: F401
    import rich.live
    import rich.progress
    import rich.table  # noqa: F401
    import torch
    from hypothesis import Phase, settings
    from pydantic import BaseModel, Field, create_model, model_validator  # noqa: F401
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: F401
    from transformers.models.qwen3 import Qwen3ForCausalLM  # noqa: F401

    torch.set_num_threads(1)
    # A failure is enough: nobody reads the smallest one.
    settings.register_profile("first", phases=[Phase.explicit, Phase.generate], database=None)
    settings.load_profile("first")


def _wanted(path: Path, words: Sequence[str]) -> bool:
    name = path.relative_to(SOURCE).as_posix()
    return not words or any(word in name for word in words)


def _tests_of(path: Path, tests: dict[str, list[str]]) -> list[str]:
    name = path.relative_to(SOURCE).as_posix()
    fitting = [key for key in tests if name == key or name.startswith(f"{key}/")]
    words = tests[max(fitting, key=len)] if fitting else []
    return [word if word.startswith("-") else str(ROOT / "tests" / word) for word in words]


def _gone(tests: dict[str, list[str]]) -> list[str]:
    """Modules and files of tests that were moved or renamed since."""
    files = {w.partition("::")[0] for words in tests.values() for w in words if w[0] != "-"}
    return [
        *(f"src/resd/{path}" for path in sorted(tests) if not (SOURCE / path).exists()),
        *(f"tests/{file}" for file in sorted(files) if not (ROOT / "tests" / file).is_file()),
    ]


def _module(path: Path, tests: Sequence[str], number: int, seed: int) -> tuple[int, int]:
    name, began = path.relative_to(SOURCE).as_posix(), time.monotonic()
    chosen = _sample(path, number, f"{seed} {name}")
    if not chosen:
        return 0, 0
    if _run(tests, math.inf) != 0:
        print(f"{name}: its tests fail without a mutant; left out", flush=True)
        return 0, 0
    limit = SECONDS + TIMES * (time.monotonic() - began)
    survivors = []
    for mutant in chosen:
        operator = get_operator(mutant.operator_name)(**mutant.operator_args)
        with use_mutation(mutant.module_path, operator, mutant.occurrence) as (before, after):
            if _run(tests, limit) == 0:
                survivors.append((mutant, *_changed(before, after)))
    killed = len(chosen) - len(survivors)
    took = time.monotonic() - began
    print(f"{name}: {killed} killed, {len(survivors)} survived, {len(chosen)} total ({took:.0f} s)")
    for mutant, old, new in survivors:
        kind = mutant.operator_name.removeprefix("core/")
        print(f"  line {mutant.start_pos[0]}: {kind}\n    - {old}\n    + {new}")
    sys.stdout.flush()
    return killed, len(chosen)


def _sample(path: Path, number: int, seed: str) -> list[MutationSpec]:
    """Mutants at places of their own, without those in annotations, which nothing executes."""
    with use_db(":memory:", WorkDB.Mode.create) as found:
        init([path], found, {})
        mutants = [item.mutations[0] for item in found.work_items]
    silent = _annotations(path)
    places = defaultdict(list)
    for mutant in mutants:
        if not any(start <= mutant.start_pos < end for start, end in silent):
            places[mutant.start_pos, mutant.end_pos].append(mutant)
    rng = random.Random(seed)
    chosen = rng.sample(sorted(places), min(number, len(places)))
    return [rng.choice(places[place]) for place in sorted(chosen)]


def _annotations(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where the annotations are, and the decorators that freeze a dataclass."""
    nodes: list[ast.expr | None] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.arg | ast.AnnAssign):
            nodes.append(node.annotation)
        elif isinstance(node, ast.FunctionDef):
            nodes.append(node.returns)
        elif isinstance(node, ast.ClassDef):
            nodes += node.decorator_list
    return [
        ((n.lineno, n.col_offset), (n.end_lineno or 0, n.end_col_offset or 0))
        for n in nodes
        if n is not None
    ]


def _run(tests: Sequence[str], seconds: float) -> int:
    """The exit status of pytest in a fork; a mutant that hangs counts as noticed."""
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setpgid(0, 0)
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, 1)
        os.dup2(nothing, 2)
        status = 3
        try:
            import pytest

            status = int(pytest.main([*OPTIONS, *tests]))
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    done = 0
    try:
        while time.monotonic() < until:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.05)
        return -1
    finally:  # also when a person has enough
        if not done:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _changed(before: str, after: str | None) -> tuple[str, str]:
    pairs = zip(before.splitlines(), (after or "").splitlines(), strict=False)
    return next(((a.strip(), b.strip()) for a, b in pairs if a != b), ("", ""))


if __name__ == "__main__":
    sys.exit(main())
