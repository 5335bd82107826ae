"""One training step, measured: the only thing that is said of time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from resd.config import ResdConfig, RunConfig, TracesConfig
from resd.config.paths import anchored
from resd.errors import UserError
from resd.loop.clock import describe_phases
from resd.loop.setup import prepare
from resd.loop.stream import Stream
from resd.loop.trainer import Trainer
from resd.loop.view import MuteView
from resd.models.load import LAB_MODEL, model_path, pick_device
from resd.models.sizes import architecture
from resd.runs import RunDirectory, read_metrics

# Of a stand-in: enough for every part of a step to happen, and no more.
_FEW_TOKENS, _FEW_PROMPTS = 32, 4


@dataclass(frozen=True)
class Calibration:
    """What one step took.

    Attributes:
        row: of metrics, as a run logs it.
        steps: that the run would take.
        device: on which it was measured.
        stand_in: why the run's own model was not used, if it was not.
        peak: bytes on the device at most; None where that is not counted.
    """

    row: Mapping[str, Any]
    steps: int
    device: str
    stand_in: str = ""
    peak: int | None = None

    def __str__(self) -> str:
        seconds, phases = self.row["time/step_s"], describe_phases(self.row)
        length = self.row.get("rollout/length", 0.0)
        lines = [
            f"measured on {self.device}: one step took {seconds:.2f} s ({phases}), "
            f"responses of {length:.0f} tokens"
        ]
        if self.peak is not None:
            lines.append(f"its peak on the device: {self.peak / 1e9:.2f} GB")
        if self.stand_in:
            lines.append(
                f"This is a tiny random model in its place ({self.stand_in}), with at most "
                f"{_FEW_PROMPTS} prompts and {_FEW_TOKENS} tokens a response: every part of a step "
                "works on this task, and nothing is known of the run's time."
            )
        else:
            hours = seconds * self.steps / 3600
            lines.append(
                f"{self.steps} steps like it take {hours:.1f} hours, without evaluations and "
                "checkpoints; the first step is slower than later ones, and responses may grow."
            )
        return "\n".join(lines)


def calibrate(config: RunConfig) -> Calibration:
    """Run one step of a configuration, or of a stand-in where its model is not on this machine.

    Nothing is left behind.

    Raises:
        UserError: the run cannot work; what the environment raises.
    """
    config = anchored(config, Path.cwd())
    why = _missing(config)
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        plain = {"output": place / "run", "trackers": [], "traces": TracesConfig(keep=False)}
        used = config.model_copy(update=plain, deep=True)
        if why:
            used = _stand_in(used, place / "model")
        setup = prepare(used)
        run = RunDirectory.create(place / "run", used)
        try:
            trainer = Trainer(setup, run, MuteView())
            device = pick_device(used.model.device)
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            trainer.clock.take()
            trainer.progress.step = 1
            trainer._one_step(trainer.course.batch(1))
            row = read_metrics(run.path)[-1]
            peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
            name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
            steps = Stream(setup.train, config.train, config.seed).steps
        finally:
            run.close()
            setup.close()
    return Calibration(row, steps, name, why, peak)


def _missing(config: RunConfig) -> str:
    """Why the model of a run cannot be loaded here without a download; empty if it can."""
    if config.model.path in ("lab", "smol"):
        return ""
    try:
        place = model_path(config.model.path)
        if Path(place).is_dir():
            return ""
    except UserError as error:
        return str(error)
    from transformers.utils.hub import cached_file

    for name in ("model.safetensors", "model.safetensors.index.json"):
        try:
            cached_file(place, name, local_files_only=True)
            return ""
        except OSError:
            continue
    return f"the weights of {config.model.path} are not on this machine"


def _stand_in(config: RunConfig, place: Path) -> RunConfig:
    """A tiny random model of the same kind with the lab's tokenizer, and few tokens."""
    import transformers

    known = architecture(config.model.path)
    text = known.get_text_config()
    tokenizer = AutoTokenizer.from_pretrained(LAB_MODEL)
    few = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
    own = {name: value for name, value in few.items() if hasattr(text, name)}
    torch.manual_seed(0)
    made = AutoConfig.for_model(
        text.model_type,
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=1 << 15,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **own,
        **({"moe_intermediate_size": 32} if hasattr(text, "moe_intermediate_size") else {}),
    )
    transformers.AutoModelForCausalLM.from_config(made).save_pretrained(place)
    tokenizer.save_pretrained(place)
    values = config.model_copy(deep=True)
    values.model.path, values.model.max_context = str(place), None
    values.rollout.max_new_tokens = min(_FEW_TOKENS, values.rollout.max_new_tokens)
    # The lab's tokenizer makes more tokens of the same text.
    values.rollout.max_prompt_tokens = 1 << 14
    values.train.batch_size = min(_FEW_PROMPTS, values.train.batch_size)
    if isinstance(values.method, ResdConfig):
        values.method.reflection_tokens = values.method.curation_tokens = _FEW_TOKENS
    return values
