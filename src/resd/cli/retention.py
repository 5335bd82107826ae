"""`resd retention`: what a model can do that no task taught it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from importlib.util import find_spec

from resd.errors import UserError
from resd.interval import wilson


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `resd retention`."""
    parser.add_argument("model", help="a run directory, a model directory, 'lab', or a hub id")
    parser.add_argument("--which", choices=("final", "best"), default="final", help="of a run")
    parser.add_argument("--limit", type=int, default=100, help="problems a group, at most 100")
    parser.add_argument(
        "--lm-eval", default="", metavar="TASKS", help="tasks of lm-eval too, comma-separated"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, and print a fraction with its interval for each group."""
    tasks = [name for name in options.lm_eval.split(",") if name]
    if tasks and find_spec("lm_eval") is None:
        raise UserError("--lm-eval needs lm-eval: pip install 'resd[lm-eval]'")
    from resd.measure import measure_skills

    counts = measure_skills(options.model, options.which, options.limit)
    counts["all"] = (sum(p for p, _ in counts.values()), sum(n for _, n in counts.values()))
    scores = _lm_eval(options, tasks) if tasks else {}
    if options.json:
        rows = {name: (p, n, p / n, *wilson(p, n)) for name, (p, n) in counts.items()}
        names = ("passed", "problems", "fraction", "low", "high")
        found = {name: dict(zip(names, row, strict=True)) for name, row in rows.items()}
        print(json.dumps({"skills": found, **({"lm_eval": scores} if tasks else {})}))
    else:
        print(table(counts))
        for name, value in scores.items():
            print(f"{name}  {value:.3f}")
    return 0


def table(counts: Mapping[str, tuple[int, int]]) -> str:
    """Groups, how many are solved, and the 95 % interval of the fraction."""
    lines = [f"{'group':<12}{'solved':>10}  fraction  95 % interval"]
    for name, (passed, number) in counts.items():
        low, high = wilson(passed, number)
        solved = f"{passed}/{number}"
        lines.append(f"{name:<12}{solved:>10}     {passed / number:.3f}  {low:.3f} to {high:.3f}")
    return "\n".join(lines)


def _lm_eval(options: argparse.Namespace, tasks: list[str]) -> dict[str, float]:
    """The metrics of lm-eval's tasks, by task and metric."""
    import lm_eval

    from resd.measure import settings_of
    from resd.models.load import model_path

    place = model_path(settings_of(options.model, options.which).model.path)
    try:
        found = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={place}", tasks=tasks, limit=options.limit
        )
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split())[:200]
        raise UserError(f"--lm-eval: lm-eval failed: {type(error).__name__}: {said}") from None
    return {
        f"{task}/{metric.removesuffix(',none')}": float(value)
        for task, row in found["results"].items()
        for metric, value in row.items()
        if isinstance(value, int | float) and "stderr" not in metric
    }
