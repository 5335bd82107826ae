"""Runs that only look like runs, to make pages of; and what a page holds."""

from __future__ import annotations

import base64
import gzip
import json
import random
import re
from pathlib import Path
from typing import Any

from resd.config import load_config
from resd.runs.config_file import config_text
from resd.runs.rows import append_row
from resd.runs.traces import write_traces
from resd.runs.warnings import add_warning

# What a model may write to take over a page that shows it.
HOSTILE = (
    "</script><img src=x onerror=\"window.taken='img'\"><script>window.taken='script'</script>"
    "<!--<svg onload=\"window.taken='svg'\">--> ]]> &lt;b&gt; \u2028 {{ 7 * 7 }} \\u003cb>"
)


def unpacked(html: str) -> dict[str, Any]:
    """The data in a page."""
    (packed,) = re.findall(r'<script type="text/plain" id="data">(.*?)</script>', html, re.S)
    data: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(packed)))
    return data


def make_run(
    place: Path, steps: int = 3, text: str = "said", batch: int = 2, noise: int = 0
) -> Path:
    """A run whose model wrote `text` everywhere, and `noise` letters in each response; complete."""
    place.mkdir(parents=True)
    config = load_config(None, [("train.steps", steps), ("output", str(place))])
    (place / "config.toml").write_text(config_text(config))
    (place / "traces").mkdir()
    add_warning(place, 1, f"a warning, {text}")
    _evaluate(place, 0, text)
    for step in range(1, steps + 1):
        _step(place, step, text, batch, noise)
    _evaluate(place, steps, text)
    (place / "done.json").write_text(json.dumps({"best_step": steps, "rollouts": steps * batch}))
    return place


def _evaluate(place: Path, step: int, text: str) -> None:
    mean = step / 10
    names = ("mean@4", "best@4", "case_mean@4", "case_best@4")
    row = {"step": step, "rollouts": step, **{f"eval/{name}": mean for name in names}}
    append_row(place, row | {"baseline/copying": 0.05, "tokens/evaluation": 40})
    answers = [_rollout(step, i, text) | {"kind": "answer"} for i in range(2)]
    write_traces(place, "evaluation", step, answers)


def _step(place: Path, step: int, text: str, batch: int, noise: int) -> None:
    append_row(
        place,
        {
            "step": step,
            "rollouts": step * batch,
            "rollout/passed": 0.5,
            "rollout/reward": 0.5,
            "train/loss": 1.0 / step,
            "tokens/rollout": 10,
            "tokens/reflection": 7,
            "time/step_s": 1.5,
            "time/update_s": 1.0,
            "count/op_unknown_id": step,
        },
    )
    rollouts = [_rollout(step, i, text, noise) for i in range(batch)]
    first = rollouts[0]
    about = {"example": first["example"], "seed": first["seed"]}
    lesson = f"lesson {step} {text}"
    question, tried = first["prompt"][0]["content"], first["response"]
    shown = f"notes\n{lesson}\n{question}\n{tried}"
    start = len("notes\n") + len(lesson) + 1
    spans = [["playbook", 6, 6 + len(lesson)], ["question", start, start + len(question)]]
    events = [{"kind": "event", "what": "added", "id": f"sai-0000{step}", "detail": lesson}]
    events[0]["evidence"] = first["evidence"]
    entry = {"id": f"sai-0000{step}", "content": lesson, "helpful": 0, "harmful": 0, "support": 1}
    entry |= {"created": step, "tagged": None, "against": 0, "replaces": [], "admitted": True}
    if step > 1:
        gone = {"kind": "event", "what": "dropped", "id": f"sai-0000{step - 1}", "detail": "unused"}
        events.insert(0, gone | {"evidence": ""})
    reflection = json.dumps({"what_went_wrong": f"wrong {text}", "what_to_do": f"do {text}"})
    curation = (
        "nothing that can be read"
        if step == 2
        else json.dumps({"operations": [{"op": "ADD", "section": "sai", "content": lesson}]})
    )
    asked = [{"role": "user", "content": f"reflect on {text}"}]
    ends = {"finish": "stop", "tokens": 7}
    tokens = {
        "ids": [5, 6],
        "texts": [f"one {text}", " two"],
        "student": [-0.5, -2.0],
        "teacher": [-0.1, -4.0],
        "loss": [0.1, float(step)],
        "student_top": [[["one", -0.5]], [[" two", -2.0]]],
        "teacher_top": [[["one", -0.1]], [[text, -0.2], [" two", -4.0]]],
    }
    records = [
        {"kind": "reflection", **about, "prompt": asked, "output": reflection, **ends},
        {"kind": "curation", **about, "prompt": asked, "output": curation, **ends},
        *events,
        {"kind": "playbook", "version": 1, "updates": step, "serial": step, "changed": 0}
        | {"entries": [entry]},
        {
            "kind": "teacher",
            **about,
            "prompt": [{"role": "user", "content": shown}],
            "spans": spans,
        },
        *rollouts,
        {"kind": "tokens", **about, **tokens},
    ]
    write_traces(place, "step", step, records)


def _rollout(step: int, number: int, text: str, noise: int = 0) -> dict[str, Any]:
    letters = random.Random(f"{step}/{number}")
    text += "".join(letters.choice("abcdefghijklmnop") for _ in range(noise))
    return {
        "kind": "rollout",
        "example": f"train-{number}",
        "seed": step * 1000 + number,
        "prompt": [{"role": "user", "content": f"question {number}"}],
        "response": f"answer {number} {text}",
        "answered": True,
        "finish": "stop",
        "tokens": 2,
        "prompt_tokens": 5,
        "evidence": f"train-{number}/{step}",
        "passed": number % 2 == 1,
        "reward": float(number % 2),
        "cases_passed": number % 2,
        "cases": 1,
        "feedback": f"feedback {text}",
    }
