"""A taskset of verifiers: sums of two numbers, the last number of the response counts."""

import random
import re
from collections.abc import Iterator

import verifiers.v1 as vf

__all__ = ["LittleSums"]


class SumData(vf.TaskData):
    answer: int


class SumTask(vf.Task[SumData]):
    @vf.reward
    async def right_sum(self, trace: vf.Trace) -> float:
        """Whether the last number of the response is the sum."""
        numbers = re.findall(r"\d{1,40}", trace.last_reply)
        return float(bool(numbers) and int(numbers[-1]) == self.data.answer)

    @vf.metric
    async def numbers(self, trace: vf.Trace) -> float:
        return float(len(re.findall(r"\d+", trace.last_reply)))


class SumsConfig(vf.TasksetConfig):
    digits: int = 4
    split: str = "all"


class LittleSums(vf.Taskset[SumTask, SumsConfig]):
    """Without end."""

    INFINITE = True

    def load(self) -> Iterator[SumTask]:
        rng = random.Random(self.config.split)
        top = 10**self.config.digits
        while True:
            a, b = rng.randrange(1, top), rng.randrange(1, top)
            yield SumTask(
                SumData(
                    system_prompt="Calculate.",
                    prompt=f"What is {a} + {b} ({self.config.split})?",
                    answer=a + b,
                ),
                self.config.task,
            )
