"""A method of one's own: learn by heart what passed, and nothing from what failed.

Rejection sampling with a plain likelihood loss, as a peer for the methods that use feedback:

    resd train --method examples/my_method.py:KeepSuccesses --method.rollouts 8
    resd train --method examples/my_method.py:KeepSuccesses --help
"""

from collections import Counter

from pydantic import Field

from resd.config import MethodConfig
from resd.methods import Method
from resd.types import TrainingSample


class KeepConfig(MethodConfig):
    rollouts: int = Field(4, ge=1, description="rollouts per prompt")
    keep: int = Field(1, ge=1, description="most successes of one prompt that teach")


class KeepSuccesses(Method[KeepConfig]):
    config_class = KeepConfig

    def samples(self, batch, notes, report):
        samples, kept = [], Counter()
        for rollout in batch:
            teaches = rollout.passed and kept[rollout.example.id] < self.config.keep
            kept[rollout.example.id] += teaches
            ids = rollout.completion.token_ids
            samples.append(TrainingSample(rollout.prompt_ids, ids) if teaches and ids else None)
        report.metrics["keep/prompts_solved"] = sum(count > 0 for count in kept.values())
        return samples

    def per_token(self, tokens, logits, report):
        return -tokens.log_probs
