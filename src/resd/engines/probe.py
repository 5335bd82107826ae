"""Whether an engine that keeps a copy of the weights generates with what it was handed."""

from __future__ import annotations

from typing import Any

import torch

from resd.backend import Backend
from resd.engines.base import Engine, Request, Sampling
from resd.engines.tokens import embedding_rows
from resd.errors import UserError
from resd.models.wrapped import forward_extras

_PROMPT, _RESPONSE = 24, 16


@torch.no_grad()
def check_copy(engine: Engine, model: Any, name: str, tolerance: float, backend: Backend) -> None:
    """Let an engine answer a fixed prompt, and score its answer with the model itself.

    A weight that was not taken over (a tied head, experts in a layout of their own) makes no error,
    only another policy.

    Args:
        engine: has just been handed the weights of the model.
        model: the student or a teacher.
        name: of the engine, for the user.
        tolerance: of the mean difference of a log-prob; rounding alone makes about 1e-6 in
            float32 and 1e-2 in bfloat16.
        backend: the processes that share the model; all of them check their own engine.

    Raises:
        UserError: it generates with other weights.
    """
    rows = embedding_rows(model)
    prompt = tuple((7 * i + 3) % rows for i in range(_PROMPT))
    (made,) = engine.generate([Request(prompt, Sampling(0.0, 1.0, _RESPONSE), 0)])
    device = next(model.parameters()).device
    ids = torch.tensor([[*prompt, *made.token_ids]], device=device)
    training = model.training
    model.eval()
    try:
        with backend.ready(model):
            logits = model(input_ids=ids, use_cache=False, **forward_extras(model, ids)).logits
    finally:
        model.train(training)
    scores = logits[0, len(prompt) - 1 : -1].float().log_softmax(dim=-1)
    own = scores.gather(-1, ids[0, len(prompt) :, None])[:, 0].cpu()
    apart = float((own - torch.tensor(made.log_probs)).abs().mean())
    if not apart <= tolerance:
        raise UserError(
            f"engine.kind {name}: vLLM does not generate with the weights that it was handed: "
            f"log-probs of a probe differ by {apart:.2g} (allowed {tolerance:g}); this vLLM cannot "
            f"take over new weights of a {type(model).__name__} here: use engine.kind hf"
        )
