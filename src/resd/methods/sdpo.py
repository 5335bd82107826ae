"""SDPO and SDPO+ss: passive feedback, no memory (the paper's baselines; method.md section 3)."""

from __future__ import annotations

from resd.config import SdpoConfig, SdpoSsConfig
from resd.context import Reflection, Sections
from resd.methods.distillation import Distillation
from resd.types import Rollout


class Sdpo(Distillation[SdpoConfig]):
    """The teacher sees the feedback, or instead of it a peer's success where one exists."""

    config_class = SdpoConfig
    own_success = False

    def sections(
        self, rollout: Rollout, peer: str, reflection: Reflection | None
    ) -> Sections | None:
        """Feedback for failures; for successes a peer's or (SDPO+ss, first) their own solution."""
        outcome, config = rollout.outcome, self.config
        assert outcome is not None
        if outcome.passed:
            solution = (rollout.answer if self.own_success else "") or peer
            return Sections(solution=solution) if solution else None
        feedback = outcome.feedback if config.feedback_beside_peer or not peer else ""
        if not feedback and not peer:
            return None
        trial = rollout.answer if config.use_trial else ""
        return Sections(trial=trial, feedback=feedback, solution=peer)


class SdpoSs(Sdpo):
    """SDPO with self-success: a response that passed is its own demonstration."""

    config_class = SdpoSsConfig
    own_success = True
