"""SDPO and SDPO+ss: passive feedback, no memory (the paper's baselines; method.md section 3)."""

from __future__ import annotations

from resd.context import Sections
from resd.methods.distillation import Distillation
from resd.types import Rollout


class Sdpo(Distillation):
    """The teacher sees the feedback on the trial, and a peer's success where one exists."""

    own_success = False

    def sections(self, rollout: Rollout, peer: str) -> Sections | None:
        """Feedback for failures; for successes a peer's, or (SDPO+ss) their own solution."""
        outcome = rollout.outcome
        assert outcome is not None
        if outcome.passed:
            solution = peer or (rollout.completion.text if self.own_success else "")
            return Sections(solution=solution) if solution else None
        if not outcome.feedback and not peer:
            return None
        trial = rollout.completion.text if self.config.use_trial else ""
        return Sections(trial=trial, feedback=outcome.feedback, solution=peer)


class SdpoSs(Sdpo):
    """SDPO with self-success: a response that passed is its own demonstration."""

    own_success = True
