"""What was fixed before the reported runs, as text for the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from resd.evidence.registry import Experiment, settings
from resd.evidence.write import tested
from resd.runs import identity


def registered(experiments: Mapping[str, Experiment]) -> str:
    """A section an experiment: its runs, what is set, what was tuned, its claims."""
    lines: list[str] = []
    for name, experiment in experiments.items():
        lines += ["", f"### {experiment.title} (`{name}`, {experiment.source})", ""]
        lines += _experiment(experiments, name, experiment)
    return "\n".join(lines).strip() + "\n"


def _experiment(
    experiments: Mapping[str, Experiment], name: str, experiment: Experiment
) -> Iterator[str]:
    if experiment.out_of_reach:
        yield f"Out of reach: {experiment.out_of_reach}."
        return
    yield (
        f"Dialects {experiment.dialects}, seeds {experiment.seeds}: {experiment.runs} runs, "
        "shared ones counted."
    )
    yield ""
    for variant in experiment.variants:
        start = f"the runs of {variant.same_as}" if variant.same_as else ""
        own = variant.set if variant.same_as else settings(experiments, name, variant)
        flat = ", ".join(f"{key} {_shown(value)}" for key, value in identity.flat(own, ""))
        yield f"- {variant.label}: {', '.join(filter(None, (start, flat)))}"
    yield ""
    yield "Tuned: " + " ".join(experiment.registered.tuned.split()).rstrip(".") + "."
    if experiment.registered.cut:
        yield f"Cut: {experiment.registered.cut}."
    yield ""
    for claim in experiment.claims:
        yield f"- {claim.text}. *{tested(claim)}*"


def _shown(value: object) -> str:
    text = str(value)
    return f"`{text}`" if len(text) < 60 else "(see the file)"
