"""AdamW, in float32 or, for weights that must stay in bfloat16, with stochastic rounding."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

import torch
from torch import Tensor

from resd.config import RunConfig, TrainConfig
from resd.errors import UserError


def make_optimizer(weights: Sequence[Tensor], config: TrainConfig) -> torch.optim.Optimizer:
    """The optimiser that `train.optimizer` names.

    `adamw_stochastic` is torchao's: it computes in float32 and rounds a bfloat16 weight up or
    down at random, by how near it is, so that small updates arrive on average.
    """
    settings = {"lr": config.lr, "weight_decay": config.weight_decay, "betas": (0.9, 0.999)}
    if config.optimizer == "adamw_stochastic":
        from torchao.optim import _AdamW

        rounded: torch.optim.Optimizer = _AdamW(weights, bf16_stochastic_round=True, **settings)
        return rounded
    return torch.optim.AdamW(weights, **settings)  # type: ignore[arg-type]


def check_precision(config: RunConfig) -> None:
    """Refuse weights that AdamW's updates would be lost in; adapters are float32 in any case.

    Raises:
        UserError: full training of bfloat16 weights by plain AdamW, or torchao is not installed.
    """
    stochastic = config.train.optimizer == "adamw_stochastic"
    if stochastic and find_spec("torchao") is None:
        raise UserError(
            "train.optimizer adamw_stochastic needs torchao: pip install 'resd[torchao]'"
        )
    if config.model.dtype != "float32" and config.model.lora is None and not stochastic:
        raise UserError(
            f"model.dtype {config.model.dtype}: full training needs float32 weights, or updates "
            "of the size of the learning rate are rounded away; write --model.dtype float32 "
            "--model.compute_dtype bfloat16 to compute in bfloat16, or train adapters "
            "(--model.lora.rank 16), or round at random (--train.optimizer adamw_stochastic)"
        )
