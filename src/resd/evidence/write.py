"""The report: evidence.md, evidence.json and the pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from resd import __version__
from resd.errors import UserError
from resd.evidence.made import Made
from resd.evidence.plan import code_version
from resd.evidence.registry import Claim, Experiment
from resd.evidence.results import Judged, Result, judge_claim
from resd.evidence.statistics import LEVEL, Effect
from resd.runs import atomic

_NONE = "-"
_INTRO = """\
Written by `resd evidence`. Every value is the mean over the seeds of a dialect; an effect is the
median over dialects of the difference between two variants on the same dialect (or of one
variant's value), its interval the {level:.0%} percentile bootstrap over dialects. A claim is
*reproduced* if the whole interval lies on the claimed side of its limit, *refuted* if it lies on
the other, *undecided* if it holds the limit, *unfinished* while runs are missing.
"""
_QUICK = """\
**`--quick`: a few steps on three dialects, to see that everything works. These numbers say nothing
about any claim.**
"""


@dataclass(frozen=True)
class ClaimRow:
    """A claim as the report shows it."""

    experiment: str
    source: str
    text: str
    verdict: str
    effect: str
    tested: str
    runs: str
    seconds: float


def claim_rows(results: Sequence[Result]) -> list[ClaimRow]:
    """A row a claim, in the order of the experiments."""
    rows = []
    for result in results:
        experiment, runs = result.experiment, _runs(result)
        spent = sum(made.seconds for made in result.made.values())
        if experiment.out_of_reach:
            text = f"{experiment.title}: {experiment.out_of_reach}"
            rows.append(
                ClaimRow(
                    result.name, experiment.source, text, "out of reach", _NONE, _NONE, _NONE, 0.0
                )
            )
        for judged in map(lambda claim: judge_claim(result, claim), experiment.claims):
            rows.append(
                ClaimRow(
                    result.name,
                    experiment.source,
                    judged.claim.text,
                    judged.verdict,
                    shown_effect(judged.effect),
                    tested(judged.claim),
                    runs,
                    spent,
                )
            )
    return rows


def tested(claim: Claim) -> str:
    """What a claim compares, where, and what it takes to hold."""
    what = {"mean": "mean@n", "kept": "least share of a skill kept"}.get(claim.metric, claim.metric)
    where = f" at {claim.at}" if isinstance(claim.at, str) else ""
    if not isinstance(claim.at, str):
        ((axis, limit),) = claim.at.axis_and_limit().items()
        where = f" at {axis} {limit:g}"
    side = f"> {claim.above:g}" if claim.above is not None else f"< {claim.below:g}"
    against = f" - {claim.against}" if claim.against else ""
    return f"{claim.of}{against}, {what}{where}, {side}"


def shown_effect(effect: Effect | None) -> str:
    """The median and its interval."""
    if effect is None:
        return _NONE
    return f"{_number(effect.median)} [{_number(effect.low)}, {_number(effect.high)}]"


def write_report(results: Sequence[Result], output: Path, quick: bool) -> None:
    """Write the report and the pictures of what is there; each file is complete or the old one."""
    pictures = _draw(results, output)
    text = [*_head(results, quick), *_claims(results, quick)]
    for result in results:
        text += ["", *_section(result, pictures.get(result.name))]
    atomic.write_text(output / "evidence.md", "\n".join(text) + "\n")
    atomic.write_json(output / "evidence.json", _as_json(results, quick))


def _head(results: Sequence[Result], quick: bool) -> list[str]:
    lines = ["# Evidence", "", _INTRO.format(level=LEVEL)]
    if quick:
        lines += [_QUICK]
    total: dict[str, Made] = {}
    for result in results:
        total |= result.made
    spent = sum(made.seconds for made in total.values())
    others = sum(made.code != (code_version(),) for made in total.values())
    lines += [
        f"resd {__version__}, code {code_version()}; {len(total)} runs, {_time(spent)} of machine "
        "time (loading and evaluation included; runs that experiments share count once)."
    ]
    if others:
        lines += [
            "",
            f"**{others} of these runs were made by another version of the code**, or by two: "
            "remove their directories to make them again.",
        ]
    return [*lines, ""]


def _claims(results: Sequence[Result], quick: bool) -> Iterator[str]:
    yield "| claim | source | verdict | effect and interval | tested | runs | time | command |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in claim_rows(results):
        words = f"resd evidence {'--quick ' if quick else ''}--only {row.experiment}"
        cells = (
            row.text,
            row.source,
            row.verdict,
            row.effect,
            row.tested,
            row.runs,
            _time(row.seconds) if row.seconds else _NONE,
            f"`{words}`",
        )
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _section(result: Result, picture: str | None) -> Iterator[str]:
    experiment = result.experiment
    yield f"## {experiment.title} ({experiment.source})"
    yield ""
    if experiment.out_of_reach:
        yield f"Out of reach: {experiment.out_of_reach}"
        return
    yield from variant_table(result)
    if picture:
        yield ""
        yield f"![{experiment.title}]({picture})"
    for name, reason in result.failures.items():
        yield ""
        yield f"`{name}` has no result: `{reason.replace('`', chr(39))}`"


def variant_table(result: Result) -> Iterator[str]:
    """A row a variant: medians over dialects of what its runs came to."""
    skills = sorted({name for row in _last_rows(result) for name in row})
    names = [name.removeprefix("eval/retention/") for name in skills]
    kept = [f"kept: {name}" for name in names]
    head = ["variant", "runs", "mean@n", "quartiles", "best@n", "over all evaluations", *kept]
    head += ["precision", "rollouts", "tokens", "s"]
    yield "| " + " | ".join(head) + " |"
    yield "|---" + "|---:" * (len(head) - 1) + "|"
    for label, group in result.runs.items():
        finals = sorted(result.values(label, "mean").values())
        cells = [
            label,
            str(len(group)),
            _number(median(finals) if finals else None),
            _quartiles(finals),
            _number(result.median(label, "best")),
            _number(result.median(label, "mean", "mean")),
            *(_number(result.median(label, name)) for name in skills),
            _number(result.median(label, "playbook/precision")),
            _number(result.median(label, "rollouts"), 0),
            _number(result.median(label, "tokens"), 0),
            _number(result.median(label, "seconds"), 0),
        ]
        yield "| " + " | ".join(map(_cell, cells)) + " |"


def _last_rows(result: Result) -> Iterator[dict[str, Any]]:
    for group in result.runs.values():
        for run in group.values():
            last = run.evaluations[-1]
            yield {k: v for k, v in last.items() if k.startswith("eval/retention/")}


def _draw(results: Sequence[Result], output: Path) -> dict[str, str]:
    """The pictures of experiments that have runs, by name, relative to the report."""
    drawn = {}
    for result in results:
        if result.experiment.figure is not None and result.complete:
            from resd.evidence.figures import save_figure  # matplotlib takes a while to import

            place = f"figures/{result.name}.png"
            try:
                save_figure(result, output / place)
            except UserError:  # nothing of what it shows is there yet
                continue
            drawn[result.name] = place
    return drawn


def _as_json(results: Sequence[Result], quick: bool) -> dict[str, Any]:
    return {
        "resd": __version__,
        "code": code_version(),
        "quick": quick,
        "experiments": {result.name: _experiment_json(result) for result in results},
    }


def _experiment_json(result: Result) -> dict[str, Any]:
    experiment: Experiment = result.experiment
    judged = [judge_claim(result, claim) for claim in experiment.claims]
    return {
        "source": experiment.source,
        "runs": result.complete,
        "wanted": result.wanted,
        "seconds": round(sum(made.seconds for made in result.made.values()), 1),
        "claims": [_claim_json(item) for item in judged],
        "final": {label: result.values(label, "mean") for label in result.runs},
        "failures": dict(result.failures),
    }


def _claim_json(judged: Judged) -> Mapping[str, Any]:
    found = judged.effect
    interval = None if found is None else [found.low, found.high]
    return {
        "text": judged.claim.text,
        "tested": tested(judged.claim),
        "verdict": judged.verdict,
        "effect": None if found is None else found.median,
        "interval": interval,
        "by_dialect": dict(judged.values),
    }


def _runs(result: Result) -> str:
    return (
        f"{result.complete} of {result.wanted}"
        if result.complete < result.wanted
        else str(result.wanted)
    )


def _quartiles(values: Sequence[float]) -> str:
    if len(values) < 2:
        return _NONE
    low, high = values[(len(values) - 1) // 4], values[-1 - (len(values) - 1) // 4]
    return f"{low:.2f} to {high:.2f}"


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return _NONE
    return f"{value:.{digits}f}" if abs(value) < 1000 else f"{value:.0f}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cell(text: str) -> str:
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")
