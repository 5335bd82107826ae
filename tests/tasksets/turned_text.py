"""A taskset of verifiers: turn a text round; the reward is how much of it is right."""

import difflib

import verifiers.v1 as vf

__all__ = ["TurnedText"]

LETTERS = "abcdefghijklm"
WORDS = [f"{letter}{'oau'[i % 3]}{letter}e{LETTERS[-i]}" for i, letter in enumerate(LETTERS)]


class TextData(vf.TaskData):
    turned: str


class TextTask(vf.Task[TextData]):
    @vf.reward
    async def likeness(self, trace: vf.Trace) -> float:
        """How like the turned text the response is."""
        said = trace.last_reply[:200]
        return difflib.SequenceMatcher(None, said, self.data.turned).ratio() ** 4


class TurnedText(vf.Taskset[TextTask, vf.TasksetConfig]):
    def load(self) -> list[TextTask]:
        texts = [f"{a} {b}" for a in WORDS for b in WORDS if a != b]
        return [
            TextTask(
                TextData(
                    prompt=[vf.UserMessage(content=f"Write this from its end: {text}")],
                    turned=text[::-1],
                ),
                self.config.task,
            )
            for text in texts
        ]
