"""The loop: Algorithm 1 of the paper, from stream to checkpoint."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from resd.config import RunConfig
from resd.engines import HFEngine, Sampling
from resd.errors import UserError
from resd.loop.evaluate import Evaluation, evaluate, evaluate_baselines
from resd.loop.setup import Setup
from resd.loop.stream import Stream
from resd.loop.update import PolicyUpdate
from resd.loop.view import RunView
from resd.methods import Resd, make_method
from resd.methods.base import Services, StepReport
from resd.models.load import load_model, load_weights, save_model
from resd.report.playbook import playbook_markdown
from resd.runs import RunDirectory, atomic
from resd.runs.ranking import best_indices
from resd.runs.seeds import derive, random_state, seed_everything, set_random_state
from resd.tasks.registry import describe_error
from resd.tasks.scoring import score
from resd.types import Example, Rollout


class Trainer:
    """One run.

    Args:
        setup: environment, examples, tokenizer and prompts, already checked.
        run: the directory, open for writing.
        view: what a person sees.
    """

    def __init__(self, setup: Setup, run: RunDirectory, view: RunView) -> None:
        self.setup, self.run, self.view = setup, run, view
        self.config: RunConfig = setup.config
        config = self.config
        seed_everything(config.seed)
        checkpoints = run.checkpoints()
        latest = checkpoints[-1][1] if checkpoints else None
        self.accelerator = Accelerator(
            cpu=config.model.device == "cpu",
            log_with=list(config.trackers) or None,
            project_dir=str(run.path),
        )
        # A teacher that does not move starts from the model the run started from.
        model = load_model(config.model)
        self.stream = Stream(setup.train, config.train, config.seed)
        self.engine = HFEngine(model, setup.tokenizer, config.rollout.batch_size, setup.context)
        self.services = self._services(model)
        self.method = make_method(config.method, self.services)
        self.update = PolicyUpdate(
            model, self.method, config.train, self.accelerator, config.seed, setup.pad_id
        )
        self.model = self.accelerator.unwrap_model(self.update.student)
        self.engine.sync(self.model)
        self.step = 0
        self.solved: set[str] = set()
        self.evaluations: list[dict[str, float]] = []
        self.totals: Counter[str] = Counter()
        self._traces: list[dict[str, Any]] = []
        if latest is not None:
            self._restore(latest)
        self.baselines = evaluate_baselines(
            setup.environment, setup.test, config.evaluation, config.rollout.env_workers
        )
        run.rewind(self.step if latest is not None else -1, config.checkpoint.keep)

    # -- Algorithm 1 -----------------------------------------------------------------------

    def train(self) -> None:
        """Run to the end of the stream; evaluate, save, and leave a state that resumes."""
        self.view.begin(self.config, self.step, self.stream.steps)
        self._start_trackers()
        for note in self.setup.notes:
            self.view.warn(note)
        if self.setup.notes:
            self.run.save_notes(self.setup.notes)
        if self.step == 0 and not self.evaluations and self.config.evaluation.at_start:
            self._evaluate()
        if not self.run.checkpoints():
            self._checkpoint()
        while self.step < self.stream.steps:
            self.step += 1
            self._one_step(self.stream.batch(self.step))
            if self._evaluation_due():
                self._evaluate()
            if self.step % self.config.checkpoint.every == 0 or self.step == self.stream.steps:
                self._checkpoint()
        self._finish()

    def _one_step(self, batch: Sequence[Example]) -> None:
        began = time.monotonic()
        if self.stream.is_first_iteration(self.step):
            self.solved.clear()
        if self.config.train.early_stop:
            batch = [example for example in batch if example.id not in self.solved]
        report = StepReport()
        rollouts = self._roll_out(batch, report)  # 1, 2: rollouts and their evaluation
        self.method.learn(rollouts, report)  # 3: context update
        samples = self.method.samples(rollouts, report)  # 4: teacher context
        self.update.run(samples, report)  # 5, 6: policy update, teacher sync
        self.solved |= {rollout.example.id for rollout in rollouts if rollout.passed}
        self.totals["rollouts"] += len(rollouts)
        self._report(rollouts, report, time.monotonic() - began)

    def _roll_out(self, batch: Sequence[Example], report: StepReport) -> list[Rollout]:
        """Sample N responses for each prompt with the plain student, and score them."""
        config = self.config.rollout
        encoded = [(example, self.setup.chat.encode(example.prompt)) for example in batch]
        fitting = [(e, ids) for e, ids in encoded if len(ids) <= self.setup.max_prompt]
        report.counts["prompt_too_long"] += len(encoded) - len(fitting)
        repeated = [pair for pair in fitting for _ in range(self.method.rollouts)]
        seed = derive(self.config.seed, "rollout", self.step)
        sampling = Sampling(config.temperature, config.top_p, config.max_new_tokens, seed)
        completions = self.engine.generate([ids for _, ids in repeated], sampling)
        pairs = [(e, c.text) for (e, _), c in zip(repeated, completions, strict=True)]
        scores = score(self.setup.environment, pairs, config.env_workers)
        report.counts += scores.counts
        if scores.first_failure:
            self.view.warn(f"step {self.step}: {scores.first_failure}")
            if not any(outcome is not None for outcome in scores.outcomes):
                raise UserError(
                    f"the environment failed on every response of step {self.step}: "
                    f"{scores.first_failure}; mend it, then go on with resd train --resume "
                    f"{self.run.path}"
                )
        return [
            Rollout(example, tuple(ids), completion, outcome)
            for (example, ids), completion, outcome in zip(
                repeated, completions, scores.outcomes, strict=True
            )
        ]

    def _write(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, temperature: float, what: str
    ) -> list[str]:
        """Reflections and curations, by the weights that produced the rollouts."""
        seed = derive(self.config.seed, what, self.step)
        sampling = Sampling(temperature, 0.95, max_new_tokens, seed)
        by_teacher = getattr(self.config.method, "reflector", "student") == "teacher"
        if not by_teacher:
            return [c.text for c in self.engine.generate(prompts, sampling)]
        with self.method.teacher.model() as teacher:  # type: ignore[attr-defined]
            self.engine.sync(teacher)
            try:
                return [c.text for c in self.engine.generate(prompts, sampling)]
            finally:
                self.engine.sync(self.model)

    # -- evaluation --------------------------------------------------------------------------

    def _evaluation_due(self) -> bool:
        every = self.config.evaluation.every
        return self.step == self.stream.steps or (every > 0 and self.step % every == 0)

    def _evaluate(self) -> None:
        result: Evaluation = evaluate(
            self.engine,
            self.setup.chat,
            self.setup.environment,
            self.setup.test,
            self.config.evaluation,
            self.config.rollout,
            derive(self.config.seed, "evaluation", self.step),
            self.setup.max_prompt,
            self.baselines,
        )
        if result.failed:
            self.view.warn(f"evaluation at step {self.step}: {result.first_failure}")
            if result.failed == result.problems * result.samples:
                raise UserError(
                    f"the environment failed on every response of the evaluation at step "
                    f"{self.step}: {result.first_failure}; mend it, then go on with resd train "
                    f"--resume {self.run.path}"
                )
        self.evaluations.append({"step": self.step, **result.ranked()})
        row = {"step": self.step, "rollouts": self.totals["rollouts"], **result.row()}
        self.run.log(row)
        self.accelerator.log(result.row(), step=self.step)
        self.view.evaluated(self.step, result)
        kept = best_indices(self.evaluations, self.config.checkpoint.keep_evaluated)
        steps = [int(self.evaluations[i]["step"]) for i in kept]
        self.run.save_evaluated(self.step, steps, self._save_model)

    # -- what is kept ------------------------------------------------------------------------

    def _report(self, rollouts: Sequence[Rollout], report: StepReport, seconds: float) -> None:
        outcomes = [r.outcome for r in rollouts if r.outcome is not None]
        lengths = [len(rollout.completion.token_ids) for rollout in rollouts]
        cut = sum(rollout.completion.finish_reason == "length" for rollout in rollouts)
        n = max(1, len(outcomes))
        row: dict[str, Any] = {
            "step": self.step,
            "rollouts": self.totals["rollouts"],
            "rollout/reward": sum(o.reward for o in outcomes) / n,
            "rollout/passed": sum(o.passed for o in outcomes) / n,
            "rollout/cases": sum(o.case_fraction for o in outcomes) / n,
            "rollout/length": sum(lengths) / max(1, len(lengths)),
            "rollout/truncated": cut / max(1, len(rollouts)),
            **_mean_metrics([o.metrics for o in outcomes]),
            **report.metrics,
            **self._playbook_scores(),
            **{f"count/{key}": value for key, value in sorted(report.counts.items()) if value},
            "time/step_s": round(seconds, 4),
        }
        self.totals.update({k: v for k, v in report.counts.items() if v})
        self.run.log(row)
        self.accelerator.log({k: v for k, v in row.items() if k != "step"}, step=self.step)
        for rollout in rollouts:
            self._trace_rollout(rollout)
        if self.config.traces:
            self.run.trace(self.step, self._traces)
        self._traces = []
        if isinstance(self.method, Resd) and self.method.config.use_playbook:
            notes = playbook_markdown(self.method.playbook, self.config, self.step)
            self.run.save_playbook(self.method.playbook, notes)
        self.view.stepped(self.step, row, report.lesson)

    def _playbook_scores(self) -> dict[str, float]:
        """Precision and recall, in worlds that know the truth."""
        judge = getattr(self.setup.environment, "score_playbook", None)
        if judge is None or not isinstance(self.method, Resd):
            return {}
        try:
            scores = judge([entry.content for entry in self.method.playbook.shown()])
            return {f"playbook/{key}": float(value) for key, value in scores.items()}
        except (Exception, SystemExit) as error:
            self.view.warn(f"step {self.step}: score_playbook failed: {describe_error(error)}")
            return {}

    def _trace_rollout(self, rollout: Rollout) -> None:
        outcome = rollout.outcome
        self._trace(
            "rollout",
            rollout.example.id,
            response=rollout.completion.text,
            passed=rollout.passed,
            feedback=outcome.feedback if outcome else None,
        )

    def _trace(self, kind: str, example: str, **record: Any) -> None:
        if self.config.traces:
            self._traces.append({"kind": kind, "example": example, **record})

    def _save_model(self, path: Path) -> None:
        save_model(self.model, path)
        self.setup.tokenizer.save_pretrained(path)

    def _checkpoint(self) -> None:
        """Everything that the next step depends on."""

        def fill(path: Path) -> None:
            self.model.save_pretrained(path / "model")
            atomic.barrier("checkpoint: model")
            tensors = {**self.update.state_dict(), "random": random_state()}
            torch.save({**tensors, "method": self.method.tensors()}, path / "state.pt")
            atomic.barrier("checkpoint: tensors")
            state = {
                "version": 1,
                "step": self.step,
                "solved": sorted(self.solved),
                "evaluations": self.evaluations,
                "totals": dict(self.totals),
                "method": self.method.state_dict(),
            }
            (path / "state.json").write_text(json.dumps(state), encoding="utf-8")

        self.run.save_checkpoint(self.step, self.config.checkpoint.keep, fill)

    def _restore(self, path: Path) -> None:
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            tensors = torch.load(path / "state.pt", weights_only=True, map_location="cpu")
            load_weights(self.model, path / "model")
            self.update.load_state_dict(tensors)
            self.method.load_tensors(tensors["method"])
            self.method.load_state_dict(state["method"])
            self.step, self.solved = int(state["step"]), set(state["solved"])
            self.evaluations, self.totals = state["evaluations"], Counter(state["totals"])
            set_random_state(tensors["random"])
        except Exception as error:  # a damaged file fails in as many ways as there are formats
            what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(
                f"checkpoint {path} is damaged ({what}); remove it and resume again: the run goes "
                "on from the checkpoint before, or from its start"
            ) from None

    def _finish(self) -> None:
        best, kept = self._best()
        atomic.write_directory(self.run.path / "final", self._save_model)
        source = kept if kept is not None else self.run.path / "final"
        atomic.write_directory(self.run.path / "best", lambda path: _copy_tree(source, path))
        summary = {
            "steps": self.step,
            "best_step": best,
            "rollouts": self.totals["rollouts"],
            "counts": {k: v for k, v in self.totals.items() if k != "rollouts"},
        }
        atomic.write_json(self.run.path / "done.json", summary)
        self.accelerator.end_training()
        self.view.finished(self.run.path, best, self.evaluations)

    def _best(self) -> tuple[int, Path | None]:
        """The best evaluated step by the rank rule that is still on disk, and where."""
        here = self.run.evaluated()
        for i in best_indices(self.evaluations, len(self.evaluations)):
            step = int(self.evaluations[i]["step"])
            if step in here:
                return step, here[step]
        return self.step, None

    # -- wiring ------------------------------------------------------------------------------

    def _services(self, model: Any) -> Services:
        return Services(
            builder=self.setup.builder,
            encode=self.setup.chat.encode,
            count_tokens=self.setup.chat.count_text,
            write=self._write,
            student=model,
            trace=self._trace,
            seed=self.config.seed,
            pad_id=self.setup.pad_id,
        )

    def _start_trackers(self) -> None:
        if self.config.trackers:
            self.accelerator.init_trackers("resd", config={"config": self.config.model_dump_json()})


def _mean_metrics(rows: Sequence[Any]) -> dict[str, float]:
    """The environment's own metrics, averaged over the outcomes that have them."""
    names = sorted({name for row in rows for name in row})
    return {
        f"env/{name}": sum(float(row[name]) for row in rows if name in row)
        / sum(name in row for row in rows)
        for name in names
    }


def _copy_tree(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
