"""What a student of the lab is to keep: the base model's skills, for dialects that are not its own.

The prompts are those that the base was pretrained on and is measured by. Whoever makes that model
knows them (`resd.lab_base`), which is imported only where they are asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from resd.tasks.lab.dialect import DEVICES, HOUSES, LEVELS, ROOMS, SHIFTED, Dialect
from resd.tasks.lab.interpreter import Request
from resd.types import ChatMessage, Example

# Prompts of anchors, and examples of each gate: as many as there are.
_ANCHORS = 512
_EXAMPLES = 200


def anchors(task: Dialect) -> list[list[ChatMessage]]:
    """Pretraining prompts: solve by playbook or feedback, reflect, curate, tag, recite, echo.

    A request without anything beside it is left out: it is the task itself.

    Args:
        task: the dialect that is trained, and that no prompt is about.
    """
    from resd.lab_base.corpus import Corpus
    from resd.lab_base.wording import lab_templates

    class World(Corpus):
        def dialect(self) -> Dialect:
            return _other(super().dialect, task)

    world = World(0, lab_templates(), turn=lambda text: text)
    bare = {Request(d, r, n).text() for d in DEVICES for r in ROOMS for n in LEVELS}
    bare.update([SHIFTED, *(f"in {house} house" for house in HOUSES)])

    def prompts() -> Iterator[list[ChatMessage]]:
        while True:
            segments = world.sample(copying=0.05)
            if not bare.issuperset(segments[0][0].strip().splitlines()):
                # Of several turns the last answer is the model's own.
                yield [
                    ChatMessage(role="assistant" if taught else "user", content=text)
                    for text, taught in segments[:-1]
                ]

    return [prompt for prompt, _ in zip(prompts(), range(_ANCHORS), strict=False)]


def retention(task: Dialect) -> Mapping[str, Sequence[Example]]:
    """Every gate's prompts, on held-out dialects but the task's own."""
    from resd.lab_base.gates import CASES, WITHOUT_THRESHOLD, HeldOut, make_cases
    from resd.lab_base.wording import lab_templates

    class World(HeldOut):
        def dialect(self) -> Dialect:
            return _other(super().dialect, task)

    world = World(0, lab_templates(), turn=lambda text: text)
    return {
        gate: [
            Example(
                f"{gate}-{i:05d}",
                [{"role": "user", "content": case.prompt}],
                {"gate": gate, "truth": case.truth},
            )
            for i, case in enumerate(make_cases(gate, world, _EXAMPLES))
        ]
        for gate in CASES
        if gate not in WITHOUT_THRESHOLD
    }


def judge(example: Example, answer: str) -> bool:
    """Whether an answer to one of `retention` passes its gate."""
    from resd.lab_base.gates import JUDGES

    return JUDGES[example.data["gate"]](*example.data["truth"], answer)


def _other(draw: Any, task: Dialect) -> Dialect:
    """A dialect, but not the task's."""
    while True:
        dialect: Dialect = draw()
        if replace(dialect, shift=task.shift, house=task.house) != task:
            return dialect
