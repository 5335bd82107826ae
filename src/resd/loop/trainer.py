"""The loop: Algorithm 1 of the paper, from stream to checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.engines import Engine, HFEngine, Request, Sampling
from resd.engines.tokens import embedding_rows, end_token_ids, pad_token_id
from resd.errors import UserError
from resd.loop.clock import Clock
from resd.loop.evaluate import evaluate, evaluate_baselines
from resd.loop.masters import Masters
from resd.loop.recorder import Recorder, step_row
from resd.loop.rollouts import Batch, Sampler
from resd.loop.safe_view import SafeView
from resd.loop.setup import Setup
from resd.loop.state import Progress, restore_state, save_state
from resd.loop.stream import Stream
from resd.loop.trackers import Trackers
from resd.loop.update import PolicyUpdate
from resd.loop.view import RunView
from resd.methods import make_method
from resd.methods.base import Services, StepReport, Written
from resd.models.head import head_of
from resd.models.load import compute_dtype, load_model
from resd.models.lora import left_out
from resd.models.save import save_model, verify_saved
from resd.runs import RunDirectory, atomic, identity
from resd.runs.ranking import best_indices
from resd.runs.seeds import derive, seed_everything
from resd.tasks.registry import describe_error
from resd.types import Completion, Example, Rollout

# Nucleus of reflections and curations, as of rollouts (paper: App. G).
_WRITING_TOP_P = 0.95
# Mass of the teacher outside the support from which on a run is warned (method.md section 2).
_MOST_OUTSIDE = 0.1


class Trainer:
    """One run.

    Args:
        setup: environment, examples, tokenizer and prompts, already checked.
        run: the directory, open for writing.
        view: what a person sees.
        engine: generates; by default `transformers` on the student itself.
    """

    def __init__(
        self, setup: Setup, run: RunDirectory, view: RunView, engine: Engine | None = None
    ) -> None:
        self.setup, self.run, self.view = setup, run, SafeView(view)
        self.config: RunConfig = setup.config
        config = self.config
        for warning in setup.warnings:
            self.view.warn(warning)
        seed_everything(config.seed)
        self.clock = Clock()
        self.recorder = Recorder(run, traces=config.traces, warn=self.view.warn)
        self.stream = Stream(setup.train, config.train, config.seed)
        # A teacher that does not move starts from the model the run started from.
        self.model = load_model(config.model)
        fused = left_out(self.model)
        if fused:
            self.view.warn(
                f"model.lora: fused experts get no adapter ({', '.join(fused)}); "
                "name them in model.lora.target_modules to train them"
            )
        self.masters = Masters(self.model, compute_dtype(config.model))
        engine = engine or make_engine(self.model, setup)
        self.sampler = Sampler(
            engine,
            self.model,
            setup.chat.encode,
            setup.scorer,
            setup.max_prompt,
            config.seed,
            self.clock,
        )
        ends = end_token_ids(self.model, setup.tokenizer)
        self.pad_id = pad_token_id(setup.tokenizer, ends, embedding_rows(self.model))
        head, why = head_of(self.model)
        if why:
            self.view.warn(
                f"model.path: the logits of a whole micro-batch are made at once, because {why}: "
                "the loss takes more memory (lower train.micro_batch_tokens)"
            )
        self.method = make_method(config.method, self._services(head.whole))
        self.update = PolicyUpdate(
            self.model,
            self.masters,
            self.method,
            config.train,
            self.pad_id,
            on_sampler=not engine.shares_weights,
            warn=self.view.warn,
        )
        self.progress = Progress()
        self._told_outside = False
        checkpoints = run.checkpoints()
        if checkpoints:
            self.progress = restore_state(checkpoints[-1][1], self.model, self.update, self.method)
            self.sampler.student_changed()
        self.baselines = evaluate_baselines(
            setup.environment, setup.test, config.evaluation, setup.scorer
        )
        run.rewind(self.progress.step if checkpoints else -1, config.checkpoint.keep)
        run_id = str((identity.load(run.path) or {}).get("id", run.path.name))
        self.trackers = Trackers(config.trackers, run.path, config, run_id, warn=self.view.warn)

    # -- Algorithm 1 -----------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end of the stream; evaluate, save, and leave a state that resumes."""
        try:
            self._train()
        finally:
            self.trackers.finish()

    def _train(self) -> None:
        self.view.begin(self.config, self.progress.step, self.stream.steps)
        self.trackers.start()
        for note in self.setup.notes:
            self.view.warn(note)
        if self.setup.notes:
            self.run.save_notes(self.setup.notes)
        fresh = self.progress.step == 0 and not self.progress.evaluations
        if fresh and self.config.evaluation.at_start:
            self._evaluate()
        if not self.run.checkpoints():
            self._checkpoint()
        self.clock.take()
        while self.progress.step < self.stream.steps:
            self.progress.step += 1
            self._one_step(self.stream.batch(self.progress.step))
            if self._evaluation_due():
                self._evaluate()
            step, every = self.progress.step, self.config.checkpoint.every
            if step % every == 0 or step == self.stream.steps:
                self._checkpoint()
        self._finish()

    def _one_step(self, batch: Sequence[Example]) -> None:
        step, solved = self.progress.step, self.progress.solved
        if self.stream.is_first_iteration(step):
            solved.clear()
        if self.config.train.early_stop:
            batch = [example for example in batch if example.id not in solved]
        report = StepReport()
        rollouts = self._roll_out(batch, report)  # 1, 2: rollouts and their evaluation
        notes = self.method.learn(rollouts, report)  # 3: context update
        samples = self.method.samples(rollouts, notes, report)  # 4: teacher context
        with self.clock.phase("update"):
            if self.update.run(samples, report):  # 5, 6: policy update, teacher sync
                self.sampler.student_changed()
        solved |= {rollout.example.id for rollout in rollouts if rollout.passed}
        self._report(rollouts, report)

    def _roll_out(self, batch: Sequence[Example], report: StepReport) -> list[Rollout]:
        """Sample N responses for each prompt with the plain student, and score them."""
        config, step = self.config.rollout, self.progress.step
        sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens)
        found = self.sampler.respond(batch, self.method.rollouts, sampling, "rollout", step)
        report.counts["prompt_too_long"] += found.skipped
        report.counts += found.counts
        self._tell_failures(found, f"step {step}")
        return found.rollouts

    def _tell_failures(self, found: Batch, where: str) -> None:
        for warning in found.warnings:
            self.view.warn(warning)
        if found.first_failure:
            self.view.warn(f"{where}: {found.first_failure}")
        if found.all_failed:
            raise UserError(
                f"the environment failed on every response of {where}: {found.first_failure}; mend "
                f"it, then go on with resd train --resume {self.run.path}"
            )

    def _write(
        self,
        what: str,
        wanted: Sequence[Written],
        max_new_tokens: int,
        temperature: float,
        teacher: Any = None,
    ) -> list[Completion]:
        """Reflections and curations, by the weights that produced the rollouts or a teacher's."""
        sampling = Sampling(temperature, _WRITING_TOP_P, max_new_tokens)
        requests = [
            Request(
                tuple(self.setup.chat.encode(item.prompt)),
                sampling,
                derive(item.about.seed, what),
            )
            for item in wanted
        ]
        if teacher is None:
            outputs = self.sampler.generate(requests)
        else:
            with teacher.model() as weights:
                outputs = self.sampler.generate(requests, weights)
        for item, output in zip(wanted, outputs, strict=True):
            self.recorder.trace(
                what, item.about.example.id, prompt=list(item.prompt), output=output.text
            )
        return outputs

    # -- evaluation --------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation.every
        step = self.progress.step
        return step == self.stream.steps or (every > 0 and step % every == 0)

    def _evaluate(self) -> None:
        step, config = self.progress.step, self.config
        with self.clock.apart("evaluate"):
            result = evaluate(
                self.sampler,
                self.setup.test,
                config.evaluation,
                config.rollout.max_new_tokens,
                step,
                self.baselines,
            )
        if result.failed:
            self.view.warn(f"evaluation at step {step}: {result.first_failure}")
            if result.failed == result.problems * result.samples:
                raise UserError(
                    f"the environment failed on every response of the evaluation at step "
                    f"{step}: {result.first_failure}; mend it, then go on with resd train "
                    f"--resume {self.run.path}"
                )
        self.progress.evaluations.append({"step": step, **result.ranked()})
        row = {"step": step, "rollouts": self.progress.totals["rollouts"], **result.row()}
        self.run.log(row)
        self.trackers.log(step, row)
        self.view.evaluated(step, result)
        kept = best_indices(self.progress.evaluations, config.checkpoint.keep_evaluated)
        steps = [int(self.progress.evaluations[i]["step"]) for i in kept]
        self.run.save_evaluated(step, steps, self._save_model)

    # -- what is kept ------------------------------------------------------------------------

    def _report(self, rollouts: Sequence[Rollout], report: StepReport) -> None:
        step, totals = self.progress.step, self.progress.totals
        totals["rollouts"] += len(rollouts)
        totals.update({k: v for k, v in report.counts.items() if v})
        try:
            report.metrics |= self.method.metrics(self.setup.environment)
        except (Exception, SystemExit) as error:
            self.view.warn(f"step {step}: score_playbook failed: {describe_error(error)}")
        self._tell_outside(report.metrics.get("train/teacher_outside", 0.0))
        row = step_row(step, totals["rollouts"], rollouts, report, self.clock)
        with self.clock.phase("save"):
            artifacts = self.method.artifacts(f"Playbook of {self.config.task}, step {step}")
            self.recorder.step(step, rollouts, row, artifacts)
        self.trackers.log(step, row)
        self.view.stepped(step, row, report.lesson)

    def _tell_outside(self, mass: float) -> None:
        """A teacher's token that the loss does not look at cannot be taught."""
        if mass > _MOST_OUTSIDE and not self._told_outside:
            self._told_outside = True
            self.view.warn(
                f"step {self.progress.step}: {mass:.0%} of the teacher's probability lies outside "
                "the tokens that the loss looks at, and cannot be taught: set method.support to "
                "both or full, or raise method.top_k"
            )

    def _save_model(self, path: Path) -> None:
        save_model(self.model, path, self.masters.weights)
        self.setup.tokenizer.save_pretrained(path)

    def _save_and_verify(self, path: Path) -> None:
        """What is saved is loaded again and compared, before the run calls itself done."""
        self._save_model(path)
        verify_saved(self.model, path)

    def _checkpoint(self) -> None:
        def fill(path: Path) -> None:
            save_state(path, self.progress, self.model, self.update, self.method)

        with self.clock.phase("save"):
            self.run.save_checkpoint(self.progress.step, self.config.checkpoint.keep, fill)

    def _finish(self) -> None:
        best, kept = self._best()
        atomic.write_directory(self.run.path / "final", self._save_and_verify)
        source = kept if kept is not None else self.run.path / "final"
        atomic.write_directory(self.run.path / "best", lambda path: _copy_tree(source, path))
        totals = self.progress.totals
        summary = {
            "steps": self.progress.step,
            "best_step": best,
            "rollouts": totals["rollouts"],
            "counts": {k: v for k, v in totals.items() if k != "rollouts"},
        }
        atomic.write_json(self.run.path / "done.json", summary)
        self.view.finished(self.run.path, best, self.progress.evaluations)

    def _best(self) -> tuple[int, Path | None]:
        """The best evaluated step by the rank rule that is still on disk, and where."""
        here = self.run.evaluated()
        evaluations = self.progress.evaluations
        for i in best_indices(evaluations, len(evaluations)):
            step = int(evaluations[i]["step"])
            if step in here:
                return step, here[step]
        return self.progress.step, None

    # -- wiring ------------------------------------------------------------------------------

    def _services(self, whole_logits: bool) -> Services:
        setup = self.setup
        return Services(
            builder=setup.builder,
            encode=setup.chat.encode,
            count_tokens=setup.chat.count_text,
            write=self._write,
            student=self.model,
            weights=self.masters.weights,
            trace=self.recorder.trace,
            phase=self.clock.phase,
            seed=self.config.seed,
            pad_id=self.pad_id,
            whole_logits=whole_logits,
        )


def make_engine(model: Any, setup: Setup) -> HFEngine:
    """The engine that samples from the very model in training."""
    return HFEngine(model, setup.tokenizer, setup.config.rollout.batch_size, setup.context)


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
