"""A language model in two parts: the body that makes hidden states, the head that makes logits.

Logits of a whole batch, [B, R, V], are the largest tensor of a training step by far. With the two
parts taken apart the loss can make them for a few tokens at a time (`resd.distill.chunked`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from resd.distill import scoring
from resd.models.batch import scored_inputs
from resd.models.wrapped import bare


class LogitHead:
    """Hidden states [N, D] to logits [N, V], as the model itself would make them.

    Some models scale or cap what their head gives; this does so too. `whole` heads are for models
    that do something else with it: their "hidden states" are the logits themselves.

    Args:
        model: with a language-modelling head; adapters may be around it.
        whole: the model's own logits are to be used.
    """

    def __init__(self, model: Any, *, whole: bool = False) -> None:
        self.model = model
        self.base = bare(model)
        self.whole = whole
        self.module: Any = None if whole else self.base.get_output_embeddings()
        config = self.base.config.get_text_config()
        self._divide = getattr(config, "logits_scaling", None) or 1.0  # Granite
        self._times = getattr(config, "logit_scale", None) or 1.0  # Cohere
        self._cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2

    @property
    def weights(self) -> list[Tensor]:
        """The trained weights of the head, which may be the embedding's."""
        if self.whole:
            return []
        return [weight for weight in self.module.parameters() if weight.requires_grad]

    @property
    def width(self) -> int:
        """D of what `response_states` returns."""
        config = self.base.config.get_text_config()
        return int(config.vocab_size if self.whole else config.hidden_size)

    def frozen(self, tensors: Mapping[str, Tensor] | None = None) -> LogitHead:
        """A head that stays as this one is now, in the dtype that it computes in.

        Args:
            tensors: weights in place of its own, as `tensors` gave them.

        Of a sharded model the head must be whole (`Backend.ready`). An adapter on the head is
        left out.

        Raises:
            ValueError: the head is `whole`, and so has no weights of its own.
        """
        if self.whole:
            raise ValueError("a whole head cannot be kept without its model")
        kept = copy.copy(self)
        kept.module = _Fixed(getattr(self.module, "base_layer", self.module), tensors)
        return kept

    def tensors(self) -> dict[str, Tensor]:
        """The weights of a frozen head, by name."""
        return dict(self.module.tensors)

    def __call__(self, hidden: Tensor) -> Tensor:
        """Logits [N, V] in the dtype that the model computes in."""
        if self.whole:
            return hidden
        logits: Tensor = self.module(hidden)
        if self._divide != 1.0:
            logits = logits / self._divide
        if self._times != 1.0:
            logits = logits * self._times
        if self._cap is not None:
            logits = torch.tanh(logits / self._cap) * self._cap
        return logits


class _Fixed:
    """A module with copies of the weights that it had."""

    def __init__(self, module: Any, tensors: Mapping[str, Tensor] | None) -> None:
        self._module = module
        own = (*module.named_parameters(), *module.named_buffers())
        self.tensors = {
            name: (tensors[name].to(tensor) if tensors else tensor).detach().clone()
            for name, tensor in own
        }

    def parameters(self) -> Iterator[Tensor]:
        """Nothing here is trained."""
        return iter(())

    def __call__(self, hidden: Tensor) -> Any:
        return torch.func.functional_call(self._module, self.tensors, (hidden,))


def head_of(model: Any) -> tuple[LogitHead, str]:
    """The head of a model, and why it is a `whole` one, if it is.

    A few tokens are sent through the model as a whole and in two parts, and compared: a model of
    an unknown kind may do more with its logits than is known here.
    """
    rows, answers = [[1, 2, 3]], [[1, 2]]
    head, whole = LogitHead(model), LogitHead(model, whole=True)
    if head.module is None:
        return whole, "it has no head of its own"
    try:
        with scoring(model):
            theirs = response_states(whole, rows, answers, 0).float()
            ours = head(response_states(head, rows, answers, 0)).float()
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError) as error:
        reason = " ".join(str(error).split())[:80] or type(error).__name__
        return whole, f"its head cannot be called by itself ({reason})"
    if not theirs.isfinite().all():
        return head, ""  # what is wrong with this model is not its head
    scale = theirs.abs().amax()
    if ours.shape != theirs.shape or not (ours - theirs).abs().amax() <= 0.02 * scale:
        return whole, "it changes its logits after the head in a way that is not known"
    return head, ""


def response_states(
    head: LogitHead,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    pad_id: int,
) -> Tensor:
    """Hidden states [N, D] that predict the response tokens, sample after sample.

    N is the number of response tokens of all samples: nothing is kept for padding. The sequences
    are padded on the left, so that the responses end at one column.
    """
    inputs, keep = scored_inputs(head.model, prompts, responses, pad_id)
    if head.whole:
        states = head.model(**inputs).logits
    else:
        with _captured(head.module) as captured:
            head.model(**inputs)
        if len(captured) != 1:
            raise RuntimeError(f"the head was called {len(captured)} times in a forward pass")
        states = captured[0]
    states = states[:, -keep:-1]
    lengths = torch.tensor([len(response) for response in responses], device=states.device)
    columns = torch.arange(keep - 1, device=states.device)
    wanted = columns >= (keep - 1 - lengths)[:, None]
    picked: Tensor = states[wanted]
    return picked


@contextmanager
def _captured(module: Any) -> Iterator[list[Tensor]]:
    """Let a head note what it is given instead of making logits of it."""
    seen: list[Tensor] = []

    def note(hidden: Tensor, *_: Any, **__: Any) -> Tensor:
        seen.append(hidden)
        return hidden[..., :1].clone()

    own = vars(module).get("forward")
    module.forward = note
    try:
        yield seen
    finally:
        if own is None:
            del module.forward
        else:
            module.forward = own
