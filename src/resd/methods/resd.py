"""RESD: reflect on failures, keep a playbook, cache successes (paper: Algorithm 1, section 3.3)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

from resd.config import ResdConfig
from resd.context import (
    Entry,
    Operation,
    Playbook,
    Reflection,
    Sections,
    SolutionBuffer,
    parse_curation,
    parse_reflection,
    parse_success_tags,
)
from resd.methods.base import Notes, Services, StepReport, Written
from resd.methods.controls import shuffled_entries, shuffled_reflections
from resd.methods.distillation import Distillation
from resd.report.playbook import playbook_markdown
from resd.types import ChatMessage, Completion, Rollout


class _Parsed(Protocol):
    """What a parser makes of an output; `problem` says what was wrong with it, if anything."""

    @property
    def problem(self) -> str: ...


P = TypeVar("P", bound=_Parsed)


class Resd(Distillation[ResdConfig]):
    """Actively written context: playbook, reflection and solution beside trial and feedback."""

    config_class = ResdConfig

    def __init__(self, config: ResdConfig, services: Services) -> None:
        super().__init__(config, services)
        self.playbook = self._new_playbook()
        self._task, self._earlier = "", dict[str, dict[str, Any]]()
        self.solutions = SolutionBuffer(config.max_solutions)

    def _new_playbook(self) -> Playbook:
        return Playbook(self.config.playbook, self.services.count_tokens, self.services.seed)

    def begin_task(self, name: str, *, first: bool) -> None:
        """A playbook of its own, where every task is to have one; the last one is kept."""
        super().begin_task(name, first=first)
        if not first and self.config.playbook.scope == "task":
            self._earlier[self._task] = self.playbook.state_dict()
            self.playbook = self._new_playbook()
        self._task = name

    # -- context update (Algorithm 1, line 3) ------------------------------------------------

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> Notes:
        """CONCISE, REFLECT, tag, cache successes, CURATE; all reads are of one snapshot each.

        The playbook is written even where the teacher does not see it (`use_playbook`), as in
        the paper's Table 3.
        """
        before = {entry.id for entry in self.playbook.shown()}
        report.counts += self.playbook.begin_update()
        failures = {
            i: r for i, r in enumerate(batch) if r.outcome and not r.passed and r.outcome.feedback
        }
        with self.services.phase("reflect"):
            reflections = self._reflect(failures, report)
            if self.config.use_solutions:
                for rollout in batch:
                    if rollout.passed:
                        self.solutions.add(rollout.example.id, rollout.answer)
            if self.config.success_tags:
                self._review([r for r in batch if r.passed], report)
        with self.services.phase("curate"):
            self._curate(batch, reflections, report)
        self._trace_playbook()
        self._describe(before, report)
        if self.config.control == "shuffled_reflection":
            reflections = shuffled_reflections(reflections, batch)
        return Notes([reflections.get(i) for i in range(len(batch))])

    def _reflect(
        self, failures: Mapping[int, Rollout], report: StepReport
    ) -> dict[int, Reflection]:
        """The reflections that could be parsed, by place in the batch; tags are applied."""
        snapshot = self.playbook.all()
        prompts = {
            i: self.services.builder.reflect(
                rollout.example,
                Sections(snapshot, trial=rollout.answer, feedback=_feedback(rollout)),
            )
            for i, rollout in failures.items()
        }
        parsed = self._written("reflection", failures, prompts, parse_reflection, report)
        for i, reflection in parsed.items():
            report.counts += reflection.rejected
            report.counts += self.playbook.tag(reflection.tags, failures[i].evidence)
        return {i: reflection for i, reflection in parsed.items() if reflection}

    def _review(self, successes: Sequence[Rollout], report: StepReport) -> None:
        """The lighter call on successes: it only tags (paper: App. G)."""
        snapshot = self.playbook.all()
        if not snapshot:
            return
        about = dict(enumerate(successes))
        prompts = {
            i: self.services.builder.review(
                rollout.example, Sections(snapshot, solution=rollout.answer)
            )
            for i, rollout in about.items()
        }
        parsed = self._written("review", about, prompts, parse_success_tags, report)
        for i, tags in parsed.items():
            report.counts += tags.rejected
            report.counts += self.playbook.tag(tags.tags, about[i].evidence)

    def _curate(
        self,
        batch: Sequence[Rollout],
        reflections: Mapping[int, Reflection],
        report: StepReport,
    ) -> None:
        """Operations of every curator on one snapshot, applied in sample order."""
        about = {i: batch[i] for i in reflections}
        if self.config.deduplicate:
            about = _one_an_example(about)
        snapshot = self.playbook.all()
        prompts = {
            i: self.services.builder.curate(
                rollout.example, Sections(snapshot, reflection=reflections[i])
            )
            for i, rollout in about.items()
        }
        wishes: list[tuple[str, Sequence[Operation]]] = []
        for i, curation in self._written(
            "curation", about, prompts, parse_curation, report
        ).items():
            report.counts += curation.rejected
            wishes.append((about[i].evidence, curation.operations))
        report.counts += self.playbook.apply(wishes)

    def _written(
        self,
        what: str,
        about: Mapping[int, Rollout],
        prompts: Mapping[int, list[ChatMessage] | None],
        parse: Callable[[str], P],
        report: StepReport,
    ) -> dict[int, P]:
        """What the model writes, parsed, for the prompts that fit; with a retry if configured."""
        fitting = {i: messages for i, messages in prompts.items() if messages is not None}
        report.counts[f"{what}_prompt_too_long"] += len(prompts) - len(fitting)
        outputs = self._ask(what, about, fitting)
        parsed: dict[int, P] = {}
        again: dict[int, list[ChatMessage]] = {}
        for i, output in outputs.items():
            if output.answer is None:
                report.counts[f"{what}_unfinished"] += 1
                continue
            parsed[i] = parse(output.answer)
            if parsed[i].problem and self.config.retry_unparsed:
                messages: list[ChatMessage] = [
                    *fitting[i],
                    {"role": "assistant", "content": output.answer[:_MOST_SHOWN]},
                    {"role": "user", "content": f"{parsed[i].problem} Answer again."},
                ]
                if len(self.services.encode(messages)) <= self.services.builder.max_tokens:
                    again[i] = messages
                else:
                    report.counts[f"{what}_again_too_long"] += 1
        for i, output in self._ask(f"{what}_again", about, again).items():
            report.counts[f"{what}_asked_again"] += 1
            better = parse(output.answer or "")
            if not better.problem:
                report.counts[f"{what}_mended"] += 1
                parsed[i] = better
        if outputs:
            used = sum(not found.problem for found in parsed.values())
            report.metrics[f"rejected/{what}"] = 1.0 - used / len(outputs)
        return parsed

    def _ask(
        self, what: str, about: Mapping[int, Rollout], prompts: Mapping[int, list[ChatMessage]]
    ) -> dict[int, Completion]:
        if not prompts:
            return {}
        config = self.config
        limit = config.reflection_tokens
        if what.startswith("curation"):
            limit = config.curation_tokens
        wanted = [Written(about[i], messages) for i, messages in prompts.items()]
        teacher = self.teacher if config.reflector == "teacher" else None
        outputs = self.services.write(
            what, wanted, limit, config.reflection_temperature, teacher=teacher
        )
        return dict(zip(prompts, outputs, strict=True))

    def _describe(self, before: set[str], report: StepReport) -> None:
        shown = self.playbook.shown()
        new = [entry.content for entry in shown if entry.id not in before]
        report.lesson = new[-1] if new else ""
        report.metrics["playbook/entries"] = float(len(shown))
        report.metrics["playbook/candidates"] = float(len(self.playbook) - len(shown))
        report.metrics["playbook/gone"] = float(len(before - {entry.id for entry in shown}))
        report.metrics["playbook/tokens"] = float(self.playbook.tokens())
        report.metrics["solutions"] = float(len(self.solutions))

    def _trace_playbook(self) -> None:
        """The playbook after this update, and what happened to its lessons."""
        for event in self.playbook.events:
            self.services.trace("event", **asdict(event))
        state = self.playbook.state_dict()
        for entry in state["entries"]:
            del entry["seen"]  # the events say who voted
        self.services.trace("playbook", **state)

    # -- teacher context (Algorithm 1, line 4) ------------------------------------------------

    def sections(
        self, rollout: Rollout, peer: str, reflection: Reflection | None
    ) -> Sections | None:
        """Playbook, trial, feedback, reflection and solution; a playbook alone does not count.

        A passed sample never leaves the loss: with the buffer off its own answer is the solution.
        """
        outcome, config = rollout.outcome, self.config
        assert outcome is not None
        cached = self.solutions.get(rollout.example.id) if config.use_solutions else None
        playbook = self._lessons() if config.use_playbook else []
        if outcome.passed:
            solution = cached or rollout.answer or peer
            return Sections(playbook, solution=solution) if solution else None
        solution = cached or peer
        if not outcome.feedback and not solution:
            return None
        return Sections(
            playbook,
            trial=rollout.answer if config.use_trial else "",
            feedback=outcome.feedback,
            reflection=(reflection if config.use_reflection else None) or Reflection(),
            solution=solution,
        )

    def _lessons(self) -> Sequence[Entry]:
        """The playbook as the teacher sees it."""
        if self.config.lessons is not None:
            return [Entry(f"misc-{i:05d}", text) for i, text in enumerate(self.config.lessons, 1)]
        shown = self.playbook.shown()
        if self.config.control == "shuffled_playbook":
            return shuffled_entries(shown, self.services.seed)
        return shown

    # -- what is kept -------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Playbooks and solutions, as plain JSON."""
        return {
            "playbook": self.playbook.state_dict(),
            "solutions": self.solutions.state_dict(),
            "task": self._task,
            "earlier": self._earlier,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.playbook.load_state_dict(state["playbook"])
        self.solutions.load_state_dict(state["solutions"])
        self._task, self._earlier = str(state["task"]), dict(state["earlier"])

    def artifacts(self, title: str) -> dict[str, str]:
        """The playbook, for programs and for people; of a stream, one of every task."""
        found = {
            "playbook.json": json.dumps(self.playbook.state_dict(), indent=1) + "\n",
            "playbook.md": playbook_markdown(self.playbook, title),
        }
        for name, state in self._earlier.items():
            found[f"playbook-{name}.json"] = json.dumps(state, indent=1) + "\n"
        return found

    def metrics(self, environment: Any) -> dict[str, float]:
        """Precision and recall of the playbook, in worlds that know the truth."""
        judge = getattr(environment, "score_playbook", None)
        if judge is None:
            return {}
        scores = judge([entry.content for entry in self.playbook.shown()])
        return {f"playbook/{key}": float(value) for key, value in scores.items()}


# Characters of an output that the model is shown again when it could not be parsed.
_MOST_SHOWN = 4000


def _feedback(rollout: Rollout) -> str:
    return rollout.outcome.feedback if rollout.outcome is not None else ""


def _one_an_example(about: Mapping[int, Rollout]) -> dict[int, Rollout]:
    """The first rollout of every example: peers teach the curator nothing new (App. G)."""
    first: dict[str, int] = {}
    for i, rollout in about.items():
        first.setdefault(rollout.example.id, i)
    return {i: about[i] for i in first.values()}
