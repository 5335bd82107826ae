"""RESD: reflect on failures, keep a playbook, cache successes (paper: Algorithm 1, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resd.config import ResdConfig
from resd.context import (
    Playbook,
    Reflection,
    Sections,
    SolutionBuffer,
    parse_curation,
    parse_reflection,
    parse_success_tags,
)
from resd.context.playbook import Operation
from resd.methods.base import Services, StepReport, messages_or_count
from resd.methods.distillation import Distillation
from resd.types import Rollout


class Resd(Distillation):
    """Actively written context: playbook, reflection and solution beside trial and feedback."""

    def __init__(self, config: ResdConfig, services: Services) -> None:
        super().__init__(config, services)
        self.playbook = Playbook(config.playbook, services.count_tokens, services.seed)
        self.solutions = SolutionBuffer(config.max_solutions)
        self._reflections: dict[int, Reflection] = {}

    # -- context update (Algorithm 1, line 3) ------------------------------------------------

    def learn(self, batch: Sequence[Rollout], report: StepReport) -> None:
        """CONCISE, REFLECT, tag, cache successes, CURATE; all reads are of one snapshot each."""
        config = self.config
        before = {entry.id for entry in self.playbook.shown()}
        if config.use_playbook:
            report.counts += self.playbook.begin_update()
        failures = [r for r in batch if r.outcome is not None and not r.passed]
        failures = [r for r in failures if r.outcome is not None and r.outcome.feedback]
        self._reflections = {}
        if config.use_playbook or config.use_reflection:
            self._reflect(failures, report)
        if config.use_solutions:
            self._remember_successes(batch)
        if config.use_playbook:
            if config.success_tags:
                self._review([r for r in batch if r.passed], report)
            self._curate(failures, report)
        self._describe(before, report)

    def _reflect(self, failures: Sequence[Rollout], report: StepReport) -> None:
        snapshot = self.playbook.all()
        prompts = []
        for rollout in failures:
            assert rollout.outcome is not None
            sections = Sections(
                snapshot, trial=rollout.completion.text, feedback=rollout.outcome.feedback
            )
            prompts.append(self.services.builder.reflect(rollout.example, sections))
        for rollout, output in self._written("reflection", failures, prompts, report):
            reflection = parse_reflection(output)
            report.counts += reflection.rejected
            if reflection:
                self._reflections[id(rollout)] = reflection
            if self.config.use_playbook:
                report.counts += self.playbook.tag(reflection.tags, rollout.evidence)

    def _review(self, successes: Sequence[Rollout], report: StepReport) -> None:
        """The lighter call on successes: it only tags."""
        snapshot = self.playbook.all()
        if not snapshot:
            return
        prompts = [
            self.services.builder.review(
                rollout.example, Sections(snapshot, solution=rollout.completion.text)
            )
            for rollout in successes
        ]
        for rollout, output in self._written("review", successes, prompts, report):
            tags = parse_success_tags(output)
            report.counts += tags.rejected
            report.counts += self.playbook.tag(tags.tags, rollout.evidence)

    def _curate(self, failures: Sequence[Rollout], report: StepReport) -> None:
        reflected = [rollout for rollout in failures if id(rollout) in self._reflections]
        snapshot = self.playbook.all()
        prompts = [
            self.services.builder.curate(
                rollout.example, Sections(snapshot, reflection=self._reflections[id(rollout)])
            )
            for rollout in reflected
        ]
        wishes: list[tuple[str, Sequence[Operation]]] = []
        for rollout, output in self._written("curation", reflected, prompts, report):
            curation = parse_curation(output)
            report.counts += curation.rejected
            wishes.append((rollout.evidence, curation.operations))
        report.counts += self.playbook.apply(wishes)

    def _remember_successes(self, batch: Sequence[Rollout]) -> None:
        for rollout in batch:
            if rollout.passed:
                self.solutions.add(rollout.example.id, rollout.completion.text)

    def _written(
        self, what: str, rollouts: Sequence[Rollout], prompts: Sequence[Any], report: StepReport
    ) -> list[tuple[Rollout, str]]:
        """What the model writes for the prompts that fit, with the rollouts they are about."""
        kept, ids = [], []
        for rollout, messages in zip(rollouts, prompts, strict=True):
            encoded = messages_or_count(messages, self.services, report, what)
            if encoded is not None:
                kept.append((rollout, messages))
                ids.append(encoded)
        limit = self.config.curation_tokens if what == "curation" else self.config.reflection_tokens
        outputs = self.services.write(ids, limit, self.config.reflection_temperature, what)
        for (rollout, messages), output in zip(kept, outputs, strict=True):
            self.services.trace(what, rollout.example.id, prompt=messages, output=output)
        return [(rollout, output) for (rollout, _), output in zip(kept, outputs, strict=True)]

    def _describe(self, before: set[str], report: StepReport) -> None:
        shown = self.playbook.shown()
        new = [entry.content for entry in shown if entry.id not in before]
        report.lesson = new[-1] if new else ""
        report.metrics["playbook/entries"] = float(len(shown))
        report.metrics["playbook/candidates"] = float(len(self.playbook) - len(shown))
        report.metrics["playbook/tokens"] = float(self.playbook.tokens())
        report.metrics["solutions"] = float(len(self.solutions))

    # -- teacher context (Algorithm 1, line 4) ------------------------------------------------

    def sections(self, rollout: Rollout, peer: str) -> Sections | None:
        """Playbook, trial, feedback, reflection and solution; a playbook alone does not count."""
        outcome, config = rollout.outcome, self.config
        assert outcome is not None
        cached = self.solutions.get(rollout.example.id) if config.use_solutions else None
        solution = cached or peer
        playbook = self.playbook.shown() if config.use_playbook else []
        if outcome.passed:
            return Sections(playbook, solution=solution) if solution else None
        if not outcome.feedback and not solution:
            return None
        reflection = self._reflections.get(id(rollout)) if config.use_reflection else None
        return Sections(
            playbook,
            trial=rollout.completion.text if config.use_trial else "",
            feedback=outcome.feedback,
            reflection=reflection or Reflection(),
            solution=solution,
        )

    def state_dict(self) -> dict[str, Any]:
        """Playbook and solutions, as plain JSON."""
        return {"playbook": self.playbook.state_dict(), "solutions": self.solutions.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore `state_dict()`."""
        self.playbook.load_state_dict(state["playbook"])
        self.solutions.load_state_dict(state["solutions"])
