"""What is written beside a trained model: a model card, and the sampling that was evaluated.

The card is README.md with the front matter that the Hugging Face Hub reads. It holds no path, date
or duration: a run that was broken off and resumed leaves the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from resd.config import RunConfig
from resd.context import Playbook
from resd.errors import UserError
from resd.interval import wilson
from resd.runs import base_model, identity
from resd.runs.config_file import read_config
from resd.runs.remake import portable, remake_command
from resd.runs.rows import is_step, read_metrics
from resd.runs.traces import playbook_state
from resd.runs.warnings import add_warning
from resd.tasks.registry import ADAPTERS, BUILT_IN, find_class

NAME, GENERATION = "README.md", "generation_config.json"
# Stands where the model's place is not known yet; `resd push` puts the repository there.
PLACE = "PATH_OR_REPOSITORY"

_TEXT = """\
# {title}

{intro}

## Results

{results}

## How to load it

Answers were sampled at {sampling}; `generation_config.json` says the same.

{load}

## How it was made

{made}

```bash
{command}
```

{versions}

## The playbook

{playbook}

## Licence

{licence}
"""

_TRANSFORMERS = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
model = AutoModelForCausalLM.from_pretrained("{place}", dtype="auto")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs)  # samples as generation_config.json says
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

```python
from vllm import LLM

llm = LLM("{place}")
sampling = llm.get_default_sampling_params()  # of generation_config.json
print(llm.chat(messages, sampling)[0].outputs[0].text)
```

or `vllm serve {place}`."""

_PEFT = """\
```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{place}")
base = AutoModelForCausalLM.from_pretrained("{base}", dtype="auto")
model = PeftModel.from_pretrained(base, "{place}")
messages = [{{"role": "user", "content": "..."}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, do_sample=True, {sampling})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

or `vllm serve {base} --enable-lora --lora-modules adapter={place}`."""


def with_card(
    run: Path, fill: Callable[[Path], None], best: int | None = None
) -> Callable[[Path], None]:
    """What fills a model's directory, and then writes card and generation config into it.

    A card that cannot be made is said in the run's warnings, and ends nothing.

    Args:
        run: the run's directory.
        fill: writes the model.
        best: the step of the best model; None for the model at the end.
    """

    def fill_and_describe(place: Path) -> None:
        fill(place)
        try:
            config = read_config(run)
            text = card_text(run, config, best)
        except Exception as error:
            said = f"no model card: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            add_warning(run, _last_step(read_metrics(run)), said)
            return
        (place / NAME).write_text(text, encoding="utf-8")
        _write_generation(place / GENERATION, config)

    return fill_and_describe


def card_text(
    run: Path, config: RunConfig, best: int | None = None, *, adapter: bool = False
) -> str:
    """The model card of a run's model.

    Args:
        run: the directory; its metrics and playbook are read.
        config: of the run.
        best: the step of the best model; None for the model at the end.
        adapter: of the adapters alone.
    """
    from huggingface_hub import ModelCardData

    rows = read_metrics(run)
    step = _last_step(rows) if best is None else best
    base = base_model.look_at(config.model.path)
    method = str(portable(config.method.name))
    tags = list(dict.fromkeys(["resd", method, *(["lora"] if config.model.lora else [])]))
    data = ModelCardData(
        base_model=base.hub_id,
        base_model_relation=("adapter" if adapter else "finetune") if base.hub_id else None,
        library_name="peft" if adapter else "transformers",
        license=base.licence,
        pipeline_tag="text-generation",
        tags=tags,
    )
    load = _PEFT if adapter else _TRANSFORMERS
    sampling = f"temperature={config.evaluation.temperature}, top_p={config.evaluation.top_p}"
    text = _TEXT.format(
        title=f"{_task(config)}, learnt by {method}",
        intro=_intro(config, base.name, step, best),
        results=_results(rows, step),
        sampling=f"temperature {config.evaluation.temperature:g}, top-p "
        f"{config.evaluation.top_p:g}, at most {config.rollout.max_new_tokens} tokens",
        load=load.format(
            place=PLACE,
            base=base.hub_id or portable(config.model.path),
            sampling=f"{sampling}, top_k=0, max_new_tokens={config.rollout.max_new_tokens}",
        ),
        made=_made(config),
        command=remake_command(config),
        versions=_versions(run),
        playbook=_playbook(run, config, step),
        licence=base.said,
    )
    return f"---\n{data.to_yaml()}\n---\n\n{text}"


# -- the parts -----------------------------------------------------------------------------------


def _task(config: RunConfig) -> str:
    if config.stream:
        return " then ".join(part.name for part in config.stream)
    return str(portable(config.task))


def _intro(config: RunConfig, base: str, step: int, best: int | None) -> str:
    described = [_description(task) for task in dict.fromkeys(config.tasks)]
    about = "; ".join(text for text in described if text)
    which = f"after step {step}, the last"
    if best is not None:
        which = (
            f"after step {step}, the best of the evaluated ones (sum of the ranks on the four test "
            "metrics; it was chosen by the numbers below, so they flatter it a little)"
        )
    return (
        f"{base}, trained on the task `{_task(config)}`{f' ({about})' if about else ''} from its "
        f"own failures. The weights are those {which}. The model is asked the plain prompt: no "
        "playbook, no feedback."
    )


def _description(task: str) -> str:
    """What a task that comes with the package says of itself."""
    if task in BUILT_IN or task.partition(":")[0] in ADAPTERS:
        with suppress(UserError):
            return str(getattr(find_class(task), "description", ""))
    return ""


def _results(rows: list[dict[str, Any]], step: int) -> str:
    """A table of the evaluations before training and at a step, with intervals."""
    evaluations = [row for row in rows if "eval/problems" in row]
    here = next((row for row in evaluations if row["step"] == step), None)
    if here is None:
        return "These weights were not evaluated during the run."
    before = next((row for row in evaluations if row["step"] == 0 != step), None)
    columns = {"before": before, "these weights": here} if before else {"these weights": here}
    number = int(here["eval/problems"])
    lines = [f"| metric | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for key in here:
        if key.startswith("eval/") and ("@" in key or "retention" in key):
            of = None if "retention" in key or "/tasks/" in key else number
            cells = [_with_interval(row.get(key), of) for row in columns.values()]
            lines.append(f"| {key.removeprefix('eval/')} | {' | '.join(cells)} |")
    guessed = {k: v for k, v in here.items() if k.startswith("baseline/")}
    said = [
        "mean@n: over all problems and their n answers, how many pass all cases; best@n: problems "
        "that one of the n answers solves; case_: the same of the fraction of cases passed.",
        f"In brackets Wilson's 95 % interval over the {number} test examples; of a mean over "
        "answers or cases it is too wide rather than too narrow. One run, one seed.",
    ]
    if guessed:
        shares = ", ".join(f"{k.removeprefix('baseline/')} {v:.3f}" for k, v in guessed.items())
        said.append(f"Trivial strategies solve, of the same examples: {shares}.")
    return "\n".join(lines) + "\n\n" + "\n".join(said)


def _with_interval(value: Any, number: int | None) -> str:
    if not isinstance(value, int | float):
        return ""
    if not number:
        return f"{value:.3f}"
    low, high = wilson(value * number, number)
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _made(config: RunConfig) -> str:
    method, train = config.method, config.train
    title = (type(method).__doc__ or "").strip().partition("\n")[0]
    trained = f"LoRA adapters of rank {config.model.lora.rank}" if config.model.lora else "all"
    rows = {
        "method": f"{portable(method.name)}. {title}",
        "weights trained": f"{trained}, {config.model.dtype}",
        "batch": f"{train.batch_size} prompts, {train.inner_iterations} steps on each, "
        f"{method.most_rollouts} responses a prompt",
        "learning rate": f"{train.lr:g}, {train.warmup_steps} steps of warm-up",
        "responses": f"temperature {config.rollout.temperature:g}, top-p "
        f"{config.rollout.top_p:g}, at most {config.rollout.max_new_tokens} tokens",
        "seed": config.seed,
    }
    lines = [f"| {key} | {value} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines]) + "\n\nOne command makes it again:"


def _versions(run: Path) -> str:
    found: Mapping[str, Any] = (identity.load(run) or {}).get("versions") or identity.versions()
    made = ", ".join(f"{name} {value}" for name, value in found.items())
    return f"Made with {made}."


def _playbook(run: Path, config: RunConfig, step: int) -> str:
    """The lessons; a fence keeps what a model wrote from being Markdown."""
    kept = getattr(config.method, "playbook", None)
    if kept is None:
        return "This method keeps none."
    playbook, when = Playbook(kept), f"after step {step}"
    state = playbook_state(run, step)
    if state is None and step:
        when = "at the end of the run"
        with suppress(OSError):
            state = json.loads((run / "playbook.json").read_text(encoding="utf-8"))
    if state is not None:
        playbook.load_state_dict(state)
    text = "\n".join(entry.render() for entry in playbook.shown())
    if not text:
        return f"It was empty {when}."
    fence = "```"
    while fence in text:
        fence += "`"
    return (
        f"The lessons that the run kept {when}, written by the model itself from its failures. The "
        f"trained model needs none of them.\n\n{fence}text\n{text}\n{fence}"
    )


def _last_step(rows: list[dict[str, Any]]) -> int:
    return max((row["step"] for row in rows if is_step(row)), default=0)


def _write_generation(file: Path, config: RunConfig) -> None:
    """Beside the token ids, which are there, the sampling of the evaluation."""
    values = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    values |= {
        "do_sample": True,
        "temperature": config.evaluation.temperature,
        "top_p": config.evaluation.top_p,
        "top_k": 0,  # off; a library's default may not be
        "max_new_tokens": config.rollout.max_new_tokens,
    }
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
