"""The registered experiments: a TOML file each, checked before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from resd.compare.variants import parse_seeds
from resd.config import Part
from resd.config.load import merge
from resd.errors import UserError, close_to

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# What a run comes to beside the metrics of its evaluations; `resd.evidence.measure` says how.
OWN = (
    *("kept", "learnt", "held", "wrong_share", "writing_share", "anchor_share"),
    *("rollouts", "tokens", "seconds"),
)
# In claims, beside the names of metrics.jsonl.
METRICS = ("mean", "best", *OWN)


class At(Part):
    """A point on an axis."""

    step: int | None = Field(None, ge=0)
    rollouts: int | None = Field(None, ge=1)
    tokens: int | None = Field(None, ge=1)
    seconds: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one(self) -> At:
        if len(self.axis_and_limit()) != 1:
            raise ValueError("give one of step, rollouts, tokens, seconds")
        return self

    def axis_and_limit(self) -> dict[str, float]:
        """The axis that is given, and how far to go on it."""
        return self.model_dump(exclude_none=True)


class Claim(Part):
    """One sentence that can turn out false.

    Attributes:
        of, against: variants. The effect is the difference `of` - `against` by dialect, or
            without `against` the value of `of`.
        metric: one of `METRICS`, or a name of metrics.jsonl.
        at: where on the curve: its end, its best point, the mean over all evaluations after the
            first (how early it rises), or a point on an axis.
        above, below: the side that is claimed; one of them.
    """

    text: str = Field(min_length=10)
    of: str
    against: str | None = None
    metric: str = "mean"
    at: Literal["last", "best", "mean"] | At = "last"
    above: float | None = None
    below: float | None = None

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if name not in METRICS and "/" not in name:
            raise ValueError(f"there is no metric {name!r}{close_to(name, METRICS)}")
        return name

    @model_validator(mode="after")
    def _one_side(self) -> Claim:
        if (self.above is None) == (self.below is None):
            raise ValueError("give either above or below")
        return self


class Set(Part):
    """One curve: a variant of settings.

    Attributes:
        same_as: `EXPERIMENT/LABEL`, whose settings it starts from instead of the experiment's: the
            runs are the same where nothing is set beside it.
        set: settings, as in a run's file.
        x, line: its place and its line in a figure of kind `dial`.
    """

    label: str
    same_as: str | None = None
    set: dict[str, Any] = Field(default_factory=dict)
    x: float | None = None
    line: str | None = None


class Panel(Part):
    """One pair of axes: names of the axis and of the metric."""

    x: str = "rollouts"
    y: str = "mean"
    label: str = ""


class Picture(Part):
    """How the runs are drawn."""

    kind: Literal["curves", "bars", "dial", "phases", "tokens"] = "curves"
    panels: list[Panel] = Field(
        default_factory=lambda: [Panel(x=x) for x in ("rollouts", "tokens", "seconds")]
    )
    x_label: str = ""


class Registered(Part):
    """What was fixed before the reported runs, and how."""

    tuned: str = Field("nothing for this experiment", min_length=5)
    cut: str = ""


class Experiment(Part):
    """A registered experiment.

    Attributes:
        order: experiments run in this order, the most important first.
        runs: how many there are, shared ones counted; checked.
        out_of_reach: why it is not run at all; then it has no variants.
        settings: of all variants, as in a run's file.
        quick: `--quick` runs it.
    """

    title: str
    source: str
    order: int
    runs: int = Field(ge=0)
    out_of_reach: str = ""
    dialects: str = "10-19"
    seeds: str = "0-2"
    settings: dict[str, Any] = Field(default_factory=dict)
    variants: list[Set] = Field(default_factory=list)
    claims: list[Claim] = Field(default_factory=list)
    figure: Picture | None = None
    registered: Registered = Field(default_factory=Registered)
    quick: bool = False

    @field_validator("dialects", "seeds")
    @classmethod
    def _numbers(cls, text: str) -> str:
        try:
            parse_seeds(text)
        except UserError as error:
            raise ValueError(str(error).replace("seeds: ", "")) from None
        return text

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        labels = [variant.label for variant in self.variants]
        for claim in self.claims:
            for label in filter(None, (claim.of, claim.against)):
                if label not in labels:
                    raise ValueError(
                        f"claim {claim.text!r:.60} names variant {label!r}{close_to(label, labels)}"
                    )
        if len(set(labels)) < len(labels):
            raise ValueError("two variants have the same label")
        if self.out_of_reach and self.variants:
            raise ValueError("what is out of reach has no variants")
        if not self.out_of_reach and not (self.variants and self.claims):
            raise ValueError("it needs variants and claims, or out_of_reach")
        count = len(labels) * len(self.dialect_numbers) * len(self.seed_numbers)
        if self.runs != count:
            raise ValueError(f"runs is {self.runs}, but variants x dialects x seeds are {count}")
        return self

    @property
    def dialect_numbers(self) -> list[int]:
        """The dialects."""
        return parse_seeds(self.dialects)

    @property
    def seed_numbers(self) -> list[int]:
        """The seeds of every dialect."""
        return parse_seeds(self.seeds)


def load_experiments(folder: Path | None = None) -> dict[str, Experiment]:
    """All experiments by name, in their order.

    Args:
        folder: of TOML files; by default those that ship.

    Raises:
        UserError: one makes no sense.
    """
    place = folder if folder is not None else resources.files("resd.evidence") / "experiments"
    files = sorted((f for f in place.iterdir() if f.name.endswith(".toml")), key=lambda f: f.name)
    found = {}
    for file in files:
        name = file.name.removesuffix(".toml")
        found[name] = parse_experiment(name, file.read_text(encoding="utf-8"))
    ordered = dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
    for name, experiment in ordered.items():
        for variant in experiment.variants:
            settings(ordered, name, variant)
    return ordered


def parse_experiment(name: str, text: str) -> Experiment:
    """An experiment from its TOML.

    Raises:
        UserError: one line that says what is wrong, with what may be meant.
    """
    try:
        return Experiment.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"experiment {name} is not valid TOML: {error}") from None
    except ValidationError as error:
        # What was misspelt is said rather than what is missing for it; of the two kinds of `at`
        # the table's mistakes say more.
        kinds = ("extra_forbidden", "value_error")
        first = min(
            error.errors(), key=lambda e: kinds.index(e["type"]) if e["type"] in kinds else 2
        )
        where = [str(p) for p in first["loc"] if p != "At" and not str(p).startswith("literal[")]
        key = ".".join(where)
        if first["type"] == "extra_forbidden":
            known = _known(where)
            raise UserError(
                f"experiment {name}: unknown key {key}{close_to(where[-1], known)}; known here: "
                f"{', '.join(known)}"
            ) from None
        text = first["msg"].removeprefix("Value error, ")
        raise UserError(f"experiment {name}: {f'{key}: ' if key else ''}{text}") from None


def _known(where: Sequence[str]) -> list[str]:
    """The keys that may stand where an unknown one does."""
    parts: dict[str, type[BaseModel]] = {
        "variants": Set,
        "claims": Claim,
        "figure": Picture,
        "panels": Panel,
        "registered": Registered,
        "at": At,
    }
    named = [parts[part] for part in where[:-1] if part in parts]
    return list((named[-1] if named else Experiment).model_fields)


def settings(
    experiments: Mapping[str, Experiment], name: str, variant: Set, depth: int = 0
) -> dict[str, Any]:
    """A variant's settings, with those that it starts from.

    Raises:
        UserError: what it starts from is not there.
    """
    if variant.same_as is None:
        return merge(experiments[name].settings, variant.set)
    other, _, label = variant.same_as.partition("/")
    what = f"experiment {name}, variant {variant.label!r}: same_as {variant.same_as!r}"
    if other not in experiments:
        raise UserError(f"{what}: no such experiment{close_to(other, experiments)}")
    labels = {item.label: item for item in experiments[other].variants}
    if label not in labels:
        raise UserError(f"{what}: it has no such variant{close_to(label, labels)}")
    if depth > len(experiments):
        raise UserError(f"{what} leads back to itself")
    return merge(settings(experiments, other, labels[label], depth + 1), variant.set)


def chosen(experiments: Mapping[str, Experiment], only: Sequence[str]) -> dict[str, Experiment]:
    """The experiments of these names, or all.

    Raises:
        UserError: there is none of that name.
    """
    for name in only:
        if name not in experiments:
            raise UserError(
                f"there is no experiment {name!r}{close_to(name, experiments)}; there are: "
                f"{', '.join(experiments)}"
            )
    return {name: value for name, value in experiments.items() if not only or name in only}
