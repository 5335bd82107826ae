"""A taskset of verifiers: a form to follow, with its reasons in words."""

import re

import verifiers.v1 as vf

__all__ = ["TaggedWords"]


class WordData(vf.TaskData):
    word: str
    number: int


class WordTask(vf.Task[WordData]):
    @vf.reward(weight=0.2)
    async def in_tags(self, trace: vf.Trace) -> float:
        found = re.search(r"<words>([\s\S]*?)</words>", trace.last_reply)
        if found is None:
            trace.info["feedback"] = "nothing stands between <words> and </words>"
        return float(found is not None)

    @vf.reward
    async def words(self, trace: vf.Trace) -> dict[str, float]:
        """Both parts of the content."""
        found = re.search(r"<words>([\s\S]*?)</words>", trace.last_reply)
        said = found.group(1).split() if found else []
        return {
            "right_word": float(bool(said) and set(said) == {self.data.word}),
            "right_number": float(len(said) == self.data.number),
        }

    @vf.reward(weight=-0.1)
    async def chatter(self, trace: vf.Trace) -> float:
        return float(len(trace.last_reply) > 200)


class TaggedWords(vf.Taskset[WordTask, vf.TasksetConfig]):
    def load(self) -> list[WordTask]:
        return [
            WordTask(
                WordData(
                    prompt=f"Write {word} {number} times between <words> and </words>.",
                    word=word,
                    number=number,
                ),
                self.config.task,
            )
            for word in ("amber", "birch", "cedar", "delta")
            for number in range(2, 12)
        ]
