"""Turn what a teacher knows into token-level supervision: losses, weights and teachers."""

from resd.distill.divergence import (
    DivergenceTerms,
    Support,
    divergence_loss,
    divergence_per_token,
    divergence_terms,
    entropy,
)
from resd.distill.policy_gradient import clipped_policy_loss, group_advantages
from resd.distill.teacher import (
    EmaTeacher,
    FrozenTeacher,
    LiveTeacher,
    Teacher,
    TeacherKind,
    is_peft,
    make_teacher,
    scoring,
)
from resd.distill.weights import (
    Aggregation,
    importance_weights,
    success_rate_weights,
    token_weights,
)

__all__ = [
    "Aggregation",
    "DivergenceTerms",
    "EmaTeacher",
    "FrozenTeacher",
    "LiveTeacher",
    "Support",
    "Teacher",
    "TeacherKind",
    "clipped_policy_loss",
    "divergence_loss",
    "divergence_per_token",
    "divergence_terms",
    "entropy",
    "group_advantages",
    "importance_weights",
    "is_peft",
    "make_teacher",
    "scoring",
    "success_rate_weights",
    "token_weights",
]
