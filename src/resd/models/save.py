"""Saving a student, and reading it again before anybody relies on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from resd.errors import UserError
from resd.models.batch import align, response_logits
from resd.models.lora import has_adapters, merged_weights
from resd.models.pins import pin_generation
from resd.models.wrapped import bare, copy_companions

ADAPTER = "adapter"
# Log-probs of a probe may differ by so much: merging rounds to the dtype of the weights.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.05, torch.bfloat16: 0.3}


def save_model(model: Any, place: Path, weights: Mapping[str, torch.Tensor] | None = None) -> None:
    """Save in Hugging Face format, as the architecture it was loaded as; the model stays as it is.

    Adapters are merged into the weights, and lie beside them in `adapter/` as peft keeps them.
    The generation config that is saved holds token ids alone.

    Args:
        model: the student.
        place: a directory.
        weights: float32 weights by name, where the model itself computes in a narrower dtype.
    """
    base = bare(model)
    kept = base.generation_config
    pin_generation(base)
    try:
        if has_adapters(model):
            merged = merged_weights(model)
            base.save_pretrained(place, state_dict=merged)
            _untie(base, merged, place)
            model.save_pretrained(place / ADAPTER, save_embedding_layers=False)
        else:
            base.save_pretrained(place, state_dict=_with_wide(model, weights or {}))
    finally:
        base.generation_config = kept
    copy_companions(base, place)


def _with_wide(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The model's state with the wide weights in the place of the narrow ones, tied ones too."""
    named = dict(model.named_parameters())
    wide = {named[name].data_ptr(): weight.detach() for name, weight in weights.items()}
    return {key: wide.get(value.data_ptr(), value) for key, value in model.state_dict().items()}


def verify_saved(
    model: Any,
    place: Path,
    prompts: Sequence[Sequence[int]] = (),
    responses: Sequence[Sequence[int]] = (),
) -> float:
    """Load what `save_model` wrote, and hold it against the model: weights, adapters, log-probs.

    Args:
        model: the student, as it was saved.
        place: where.
        prompts: token ids of a probe, at least one each; a fixed one if there are none.
        responses: of the probe, one for each prompt.

    Returns:
        The largest difference of a log-prob of the probe.

    Raises:
        UserError: what was saved cannot be loaded, or is another model; says what differs.
    """
    from resd.models.load import load_whole

    try:
        again = load_whole(place, next(model.parameters()).dtype).eval()
    except Exception as error:
        what = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"the model saved in {place} cannot be loaded again: {what}") from None
    base = bare(model)
    _same_kind(base, again, place)
    wanted = merged_weights(model) if has_adapters(model) else model.state_dict()
    _same_weights(wanted, again.state_dict(), place)
    if has_adapters(model):
        _same_adapters(model, place)
    if not prompts:
        rows = base.get_input_embeddings().weight.shape[0]
        ids = [(7 * i + 3) % rows for i in range(24)]
        prompts, responses = [ids[:9], ids[9:12]], [ids[12:20], ids[20:]]
    found = _far(model, again, prompts, responses)
    allowed = _TOLERANCE.get(next(again.parameters()).dtype, 1e-3)
    if not found <= allowed:
        raise UserError(
            f"the model saved in {place} is another one: log-probs of a probe differ by "
            f"{found:.3g} (allowed {allowed:g}); this is a fault in saving a {type(base).__name__}"
        )
    return found


def _same_kind(model: Any, again: Any, place: Path) -> None:
    if type(again) is not type(model):
        raise UserError(
            f"the model saved in {place} loads as {type(again).__name__}; it was a "
            f"{type(model).__name__}"
        )


def _same_weights(
    wanted: dict[str, torch.Tensor], found: dict[str, torch.Tensor], place: Path
) -> None:
    names = sorted(wanted.keys() ^ found.keys()) or [
        name for name, tensor in wanted.items() if not _equal(tensor, found[name])
    ]
    if names:
        raise UserError(
            f"the model saved in {place} is another one: {len(names)} of {len(wanted)} weights "
            f"differ, the first: {names[0]}; save it again on a disk that is sound"
        )


def _equal(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    """Equal up to one rounding: merging on an accelerator need not repeat to the last bit."""
    if wanted.shape != found.shape:
        return False
    wanted, found = wanted.detach().cpu().to(found.dtype), found.detach().cpu()
    if torch.equal(wanted, found) or not found.is_floating_point():
        return torch.equal(wanted, found)
    return torch.allclose(wanted, found, rtol=torch.finfo(found.dtype).eps, atol=0)


def _same_adapters(model: Any, place: Path) -> None:
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    found = load_file(place / ADAPTER / "adapter_model.safetensors")
    _same_weights(get_peft_model_state_dict(model, save_embedding_layers=False), found, place)


@torch.no_grad()
def _far(
    model: Any, again: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> float:
    training = model.training
    model.eval()
    try:
        pair = [_log_probs(m, prompts, responses) for m in (model, again)]
    finally:
        model.train(training)
    return float((pair[0] - pair[1]).abs().max())


def _log_probs(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Log-probs of the tokens of the probe, one after the other."""
    logits = response_logits(model, prompts, responses, 0).float().cpu()
    aligned = align(responses, 0, logits.device)
    chosen = logits.log_softmax(-1).gather(-1, aligned.token_ids[..., None])[..., 0]
    return chosen[aligned.mask]


def _untie(base: Any, weights: dict[str, torch.Tensor], place: Path) -> None:
    """Say in the saved config that adapters on one of two tied weights have parted them."""
    head, embedding = base.get_output_embeddings(), base.get_input_embeddings()
    names = {id(module): name for name, module in base.named_modules()}
    pair = [weights.get(f"{names.get(id(module))}.weight") for module in (head, embedding)]
    if pair[0] is None or pair[1] is None or torch.equal(pair[0], pair[1]):
        return
    path = place / "config.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for part in (content, content.get("text_config")):
        if isinstance(part, dict) and part.get("tie_word_embeddings", True):
            part["tie_word_embeddings"] = False
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
