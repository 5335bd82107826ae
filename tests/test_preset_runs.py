"""Each preset, for each method, on a tiny random model of its architecture, its limits scaled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from two import torchrun

from resd.api import start_run
from resd.config import METHODS, RunConfig, load_config, preset_names, validate
from resd.models.sizes import architecture
from resd.runs.config_file import config_text
from resd.tasks.registry import load_environment, load_examples
from resd.tasks.skills.makers import GROUPS

FACTOR = 1 / 48  # of every limit in tokens: 69632 become 1450
LIMITS = {
    "max_context",
    "max_prompt_tokens",
    "max_new_tokens",
    "max_teacher_tokens",
    "reflection_tokens",
    "curation_tokens",
    "max_tokens",
}
SCRIPTS = [name for name in preset_names() if name.endswith(("-paper", "-released", "-lora"))]
# As Qwen3's: roles between marks, thinking between tags that the model writes.
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
    "{% endif %}"
)


def scaled(values: dict[str, Any], factor: float) -> dict[str, Any]:
    """The same settings with every limit in tokens times a factor, the sections' budgets too."""
    return {
        key: {name: max(16, int(size * factor)) for name, size in value.items()}
        if key == "budgets"
        else scaled(value, factor)
        if isinstance(value, dict)
        else max(16, int(value * factor))
        if key in LIMITS and value is not None
        else value
        for key, value in values.items()
    }


def finer_rows(place: Path) -> dict[str, str]:
    tags = ["DebtInstrumentFaceAmount", "LineOfCredit", "Revenues", "Goodwill"]
    text = f"Tag with options: {', '.join(tags)}. Answer with one tag a question.\n"
    for split in ("train", "test"):
        rows = []
        for i in range(40):
            chosen = [tags[i % 4], tags[i // 4 % 4]]
            asked = "\n".join(
                f'{n}. What is best tag for entity "{i + n}" in sentence: it owed {i + n}?'
                for n in (1, 2)
            )
            rows.append({"context": f"{text}{split}\n{asked}", "target": ",".join(chosen)})
        (place / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {"train": str(place)}


def task_args(config: RunConfig, place: Path) -> dict[str, Any]:
    args = dict(config.task_args)
    if config.task == "finer":
        args |= finer_rows(place)
    if config.task == "bouncing":
        args |= {"train_size": 40, "test_size": 4}
    return args


def words_of(place: Path) -> Iterator[str]:
    """Prompts of every task, and the text that templates put around them."""
    for name in ("manufactoria-paper", "bouncing-easy-paper", "bouncing-medium-paper"):
        config = load_config(None, [("preset", name)])
        environment = load_environment(config.task, task_args(config, place))
        for example in load_examples(environment, "train", config.task)[:6]:
            yield example.prompt[0]["content"]
    for row in (place / "train.jsonl").read_text().splitlines()[:6]:
        yield json.loads(row)["context"]
    import resd.context

    for template in Path(resd.context.__file__).parent.rglob("*.j2"):
        yield template.read_text()


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Long known texts are few tokens, so that scaled limits hold real prompts."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("rows")
    finer_rows(place)
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(words_of(place), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    return fast


@pytest.fixture(scope="module")
def stand_in(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function: the directory of a tiny random model of a preset's architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def make(path: str) -> Path:
        kind = architecture(path).model_type
        if kind in made:
            return made[kind]
        experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        config = AutoConfig.for_model(
            kind,
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=2048,
            tie_word_embeddings=architecture(path).tie_word_embeddings,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **(experts if kind == "qwen3_moe" else {}),
        )
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():  # hidden states share a direction that ends a turn, soon
            model.get_input_embeddings().weight += 0.1
            model.get_output_embeddings().weight[tokenizer.eos_token_id] += 0.07
        made[kind] = tmp_path_factory.mktemp(kind)
        model.save_pretrained(made[kind])
        tokenizer.save_pretrained(made[kind])
        return made[kind]

    return make


def short(
    name: str, method: str, steps: int, stand_in: Any, place: Path, factor: float = FACTOR
) -> RunConfig:
    """A preset with all its settings but its size."""
    preset = load_config(None, [("preset", name), ("method.name", method)])
    values = scaled(preset.model_dump(mode="json", exclude_none=True), factor)
    values["model"]["path"] = str(stand_in(preset.model.path))
    values["task_args"] = task_args(preset, place)
    values["output"] = str(place / f"{name} {method}")
    values["train"] |= {"steps": steps, "batch_size": 2}
    values["evaluation"] |= {"samples": 1, "max_examples": 1, "at_start": False}
    values["rollout"] |= {"env_mode": "thread", "env_workers": 1}
    values["trackers"], values["traces"] = [], False
    return validate(values, "here")


def check(run: Path, method: str, steps: int, model: str) -> None:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert (run / "done.json").is_file()
    assert len({row["step"] for row in rows if row["step"]}) == steps
    if method == "grpo":
        return  # a random model never passes: its groups have no spread
    assert len(losses) == steps
    assert all(loss == loss for loss in losses)
    assert moved(Path(model), run) > 0.9


@pytest.mark.slow
# A hand-off is no method of the scripts: once is enough.
@pytest.mark.parametrize(
    ("name", "method"),
    [
        *((name, method) for name in SCRIPTS for method in METHODS if method != "handoff"),
        (SCRIPTS[0], "handoff"),
    ],
)
def test_a_preset_trains(name: str, method: str, stand_in: Any, tmp_path: Path) -> None:
    steps = 2 if method == "resd" else 1
    config = short(name, method, steps, stand_in, tmp_path)
    check(start_run(config), method, steps, config.model.path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_real_small_trains(method: str, stand_in: Any, tmp_path: Path) -> None:
    steps = 2 if method == "resd" else 1
    config = short("real-small", method, steps, stand_in, tmp_path, factor=1.0)
    run = start_run(config)
    check(run, method, steps, config.model.path)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    kept = {key for row in rows for key in row if key.startswith("eval/retention/")}
    assert kept == {f"eval/retention/{name}" for name in GROUPS}


@pytest.mark.slow
def test_presets_train_in_two_processes(stand_in: Any, tmp_path: Path) -> None:
    commands, runs = [], []
    for name in SCRIPTS:
        config = short(name, "resd", 1, stand_in, tmp_path)
        file = tmp_path / f"{name}.toml"
        file.write_text(config_text(config))
        commands.append(["train", str(file)])
        runs.append((config.output, config.model.path))
    codes = torchrun(tmp_path, commands, seconds=900)
    assert codes == [[0] * len(commands)] * 2
    for output, model in runs:
        assert output is not None
        check(output, "resd", 1, model)


def moved(before: Path, run: Path) -> float:
    """The share of the attention's weights that training moved, at the preset's own rate."""
    from transformers import AutoModelForCausalLM

    one, other = (
        AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).state_dict()
        for place in (before, run / "final")
    )
    names = [name for name in one if "self_attn" in name and "proj" in name]
    changed = sum(int((one[name] != other[name]).sum()) for name in names)
    return changed / sum(one[name].numel() for name in names)
