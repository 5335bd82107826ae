"""The loop: Algorithm 1 of the paper, from stream to checkpoint."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from resd.backend import Backend, Local
from resd.config import RunConfig
from resd.engines import Engine, Sampling
from resd.engines.registry import make_engine
from resd.engines.tokens import embedding_rows, end_token_ids, pad_token_id
from resd.errors import ProcessError, StoppedError, UserError
from resd.loop.anchors import make_anchors
from resd.loop.background import Background
from resd.loop.callbacks import Callbacks
from resd.loop.clock import Clock
from resd.loop.evaluate import evaluate, evaluate_baselines
from resd.loop.health import Monitor
from resd.loop.recorder import Recorder, step_row
from resd.loop.rollouts import Batch, Sampler
from resd.loop.safe_view import SafeView
from resd.loop.setup import Setup
from resd.loop.state import Progress, restore_state, state_writer
from resd.loop.stream import Course
from resd.loop.student import Student
from resd.loop.trackers import Trackers
from resd.loop.update import PolicyUpdate
from resd.loop.view import MuteView, RunView
from resd.loop.writer import ModelWriter
from resd.methods import make_method
from resd.methods.base import Services, StepReport
from resd.runs import RunDirectory, identity
from resd.runs.ranking import best_indices
from resd.runs.seeds import seed_everything
from resd.tasks.registry import describe_error
from resd.types import Example, Rollout


class Trainer:
    """One run.

    Args:
        setup: environment, examples, tokenizer and prompts, already checked.
        run: the directory, open for writing.
        view: what a person sees.
        engine: generates, and is the caller's to close; by default what the configuration names.
        backend: the processes that train together; by default this one alone.
        callbacks: told of steps and evaluations (`resd.Callback`).
    """

    def __init__(
        self,
        setup: Setup,
        run: RunDirectory,
        view: RunView,
        engine: Engine | None = None,
        backend: Backend | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.backend = backend or Local()
        self.callbacks = Callbacks(callbacks, self.backend)
        main = self.backend.main
        self.setup, self.run, self.progress = setup, run, Progress()
        self.view = SafeView(
            view if main else MuteView(), lambda text: run.warned(self.progress.step, text)
        )
        self.config: RunConfig = setup.config
        config = self.config
        for warning in setup.warnings:
            self.view.warn(warning)
        seed_everything(config.seed)
        self.clock = Clock()
        self.recorder = Recorder(
            run, config.traces, setup.tokenizer.decode, main=main, warn=self.view.warn
        )
        self.course = Course(setup.stages, config.train, config.seed)
        # A teacher that does not move starts from the model the run started from.
        self.student = Student(config.model, setup.tokenizer, self.backend, self.view.warn)
        self.model = self.student.model
        self._own_engine = (
            make_engine(config, self.model, setup.tokenizer, setup.context, self.backend)
            if engine is None
            else None
        )
        engine = engine or self._own_engine
        assert engine is not None
        self.sampler = Sampler(
            engine,
            self.model,
            setup.chat.encode,
            setup.scorer,
            setup.max_prompt,
            config.seed,
            self.clock,
            progress=self.view.progress,
            backend=self.backend,
        )
        ends = end_token_ids(self.model, setup.tokenizer)
        self.pad_id = pad_token_id(setup.tokenizer, ends, embedding_rows(self.model))
        self.method = make_method(config.method, self._services())
        self.anchors = make_anchors(
            config,
            setup.anchors,
            run.path,
            self.sampler,
            self.student,
            self.pad_id,
            self.backend,
            self.clock.phase,
        )
        self.update = PolicyUpdate(
            self.model,
            self.student.masters,
            self.method,
            config.train,
            self.pad_id,
            on_sampler=not engine.shares_weights,
            backend=self.backend,
            anchors=self.anchors,
            traces=config.traces,
            progress=self.view.progress,
        )
        self._saving = Background(enabled=config.checkpoint.background)
        self._saved_at = time.monotonic()
        checkpoints = run.checkpoints()
        if checkpoints:
            self.progress = restore_state(
                checkpoints[-1][1], self.backend, self.update, self.method
            )
            self.sampler.student_changed()
            if self.anchors is not None:
                for left in self.course.seen(self.progress.step)[:-1]:
                    self.anchors.restore(left.name)
        self.baselines = self.backend.on_main(
            lambda: evaluate_baselines(
                setup.environment, setup.test, config.evaluation, setup.scorer
            )
        )
        gap = self.update.most_gap
        self.health = Monitor(config.health, self.progress.health, self.view.warn, gap)
        last = self.progress.step if checkpoints else -1
        self.backend.on_main(lambda: run.rewind(last, config.checkpoint.keep, self._budget))
        run_id = str((identity.load(run.path) or {}).get("id", run.path.name))
        trackers = config.trackers if main else []
        self.trackers = Trackers(trackers, run.path, config, run_id, warn=self.view.warn)

    # -- Algorithm 1 -----------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end of the stream; evaluate, save, and leave a state that resumes."""
        try:
            self._train()
            self._saving.wait()
        finally:
            self._saving.settle()
            self.trackers.finish()
            if self._own_engine is not None:
                self._own_engine.close()

    def _train(self) -> None:
        self.view.begin(self.config, self.progress.step, self.course.steps)
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
        stopped = self._tell_callbacks()
        while not stopped and self.progress.step < self.course.steps:
            self.progress.step += 1
            if self.course.begins(self.progress.step):
                self._begin_task()
            self._one_step(self.course.batch(self.progress.step))
            if self._evaluation_due():
                self._evaluate()
            stops = self.backend.told(self.health.stops)
            if stops or self._checkpoint_due():
                self._checkpoint()
            stopped = self._tell_callbacks()
            if stops and not stopped and self.progress.step < self.course.steps:
                self._stop(stops)
        self._finish()

    def _stop(self, signals: Sequence[str]) -> None:
        self._saving.wait()
        raise StoppedError(
            f"stopped after step {self.progress.step} by health.{', health.'.join(signals)}; go on "
            f"all the same with resd train --resume {self.run.path}"
        )

    def _tell_callbacks(self) -> bool:
        """Whether one of them asks to stop; what one fails of is raised once the state is saved."""
        ending, step = self.callbacks.call(), self.progress.step
        if ending is None:
            return False
        evaluated = any(row["step"] == step for row in self.progress.evaluations)
        if not ending.failed and not evaluated:
            self._evaluate()
            ending = self.callbacks.call() or ending
        self._checkpoint()
        if ending.failed:
            self._saving.wait()
            raise ProcessError(
                f"{ending.said}; step {step} is saved: mend it, then go on with resd train "
                f"--resume {self.run.path}"
            )
        self.view.warn(ending.said)
        return True

    def _begin_task(self) -> None:
        """Leave the task before, if there is one, and begin the one of this step."""
        *before, now = self.course.seen(self.progress.step)
        if before and self.anchors is not None:
            self.anchors.leave(before[-1], self.config, self.setup.chat, self.sampler)
        self.method.begin_task(now.name, first=not before)
        self.health.begin_task()

    def _one_step(self, batch: Sequence[Example]) -> None:
        step, solved = self.progress.step, self.progress.solved
        if self.course.is_first_iteration(step):
            solved.clear()
        if self.config.train.early_stop:
            batch = [example for example in batch if example.id not in solved]
        report = StepReport()
        rollouts = self._roll_out(batch, report)  # 1, 2: rollouts and their evaluation
        notes = self.method.learn(rollouts, report)  # 3: context update
        samples = self.method.samples(rollouts, notes, report)  # 4: teacher context
        with self.clock.phase("update"):
            self.sampler.rest()
            watched = self.recorder.watched(rollouts, samples)
            if self.update.run(samples, report, watched):  # 5, 6: policy update, teacher sync
                self.sampler.student_changed()
        self.backend.agree(
            "what the method remembers", lambda: json.dumps(self.method.state_dict())
        )
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

    # -- evaluation --------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation.every
        step = self.progress.step
        return self.course.ends(step) or (every > 0 and step % every == 0)

    def _evaluate(self) -> None:
        step, config = self.progress.step, self.config
        keeps = config.evaluation.retention_at == "all" or step in (0, self.course.steps)
        with self.clock.apart("evaluate"):
            result = evaluate(
                self.sampler,
                {stage.name: stage.test for stage in self.course.seen(step)},
                config.evaluation,
                config.rollout.max_new_tokens,
                step,
                self.baselines,
                self.setup.retention if keeps else None,
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
        self.recorder.evaluated(step, result)
        self.trackers.log(step, row)
        self.view.evaluated(step, result)
        self.health.evaluated(step, result)
        self.callbacks.tell("on_evaluation", step, result)
        kept = best_indices(self.progress.evaluations, config.checkpoint.keep_evaluated)
        steps = [int(self.progress.evaluations[i]["step"]) for i in kept]
        self.run.save_evaluated(step, steps, self.student.save)

    # -- what is kept ------------------------------------------------------------------------

    def _report(self, rollouts: Sequence[Rollout], report: StepReport) -> None:
        step, totals = self.progress.step, self.progress.totals
        totals["rollouts"] += len(rollouts)
        totals.update({k: v for k, v in report.counts.items() if v})
        try:
            if self.backend.main:
                report.metrics |= self.method.metrics(self.course.stage(step).environment)
        except (Exception, SystemExit) as error:
            self.view.warn(f"step {step}: score_playbook failed: {describe_error(error)}")
        report.metrics |= self.recorder.tokens_written(rollouts)
        row = step_row(step, totals["rollouts"], rollouts, report, self.clock)
        with self.clock.phase("save"):
            artifacts = self.method.artifacts(f"Playbook of {self.config.task}, step {step}")
            self.recorder.step(step, rollouts, row, artifacts, report.tokens)
        self.trackers.log(step, row)
        self.view.stepped(step, row, report.lesson)
        if rollouts:
            self.health.stepped(row)
        self.callbacks.tell("on_step", step, row)

    @property
    def _budget(self) -> float | None:
        most = self.config.checkpoint.max_gb
        return None if most is None else most * 1e9

    def _checkpoint_due(self) -> bool:
        step, config = self.progress.step, self.config.checkpoint
        if step == self.course.steps:
            return True
        if isinstance(config.every, int):
            return step % config.every == 0
        due = time.monotonic() - self._saved_at >= (config.seconds or 0.0)
        return self.backend.told(due)  # clocks differ

    def _checkpoint(self) -> None:
        """Begin to write a checkpoint; the one before is complete by then."""
        step, config = self.progress.step, self.config.checkpoint
        with self.clock.phase("save"):
            self._saving.wait()
            fill = state_writer(
                self.backend, self.progress, self.update, self.method, copy=config.background
            )
            self._saving.start(
                lambda: self.run.save_checkpoint(step, config.keep, fill, self._budget)
            )
        self._saved_at = time.monotonic()

    def _finish(self) -> None:
        self._saving.wait()
        self.run.save_final(self.student.save_and_verify)
        best = self._best()
        totals = self.progress.totals
        summary = {
            "steps": self.progress.step,
            "best_step": best,
            "rollouts": totals["rollouts"],
            "counts": {k: v for k, v in totals.items() if k != "rollouts"},
        }
        self.backend.on_main(lambda: self.run.finish(best, summary))
        self.view.finished(self.run.path, best, self.progress.evaluations)

    def _best(self) -> int:
        """The best evaluated step by the rank rule that is still on disk; else the last."""
        here = self.run.evaluated()
        evaluations = self.progress.evaluations
        for i in best_indices(evaluations, len(evaluations)):
            step = int(evaluations[i]["step"])
            if step in here:
                return step
        return self.progress.step

    # -- wiring ------------------------------------------------------------------------------

    def _services(self) -> Services:
        setup = self.setup
        return Services(
            builder=setup.builder,
            encode=setup.chat.encode,
            count_tokens=setup.chat.count_text,
            write=ModelWriter(self.sampler, setup.chat.encode, self.recorder),
            student=self.model,
            weights=self.student.masters.weights,
            trace=self.recorder.trace,
            phase=self.clock.phase,
            seed=self.config.seed,
            pad_id=self.pad_id,
            whole_logits=self.student.whole_logits,
            copy=self.student.frozen_copy,
        )
