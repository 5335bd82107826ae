"""A task of your own. Replace what is below by your world; the four steps stay.

    resd tasks check scheduler.py:Scheduler              # is it sound?
    resd train --task scheduler.py:Scheduler --model.path MODEL

The example: turn a sentence into a line for an in-house scheduler that no model has seen.
"""

from __future__ import annotations

from collections.abc import Sequence

from resd import Example, Outcome
from resd.tasks.answers import final_text
from resd.types import Split

JOBS = ("backup", "cleanup", "report", "sync")
HOSTS = ("web", "mail", "files", "build", "cache")
UNITS = {"hours": "h", "days": "d", "weeks": "w"}

# 1. The prompt. Say what is asked for and in which form, but not what is to be learnt: here, the
#    order of the parts and their marks. The model finds that out from the feedback.
PROMPT = """Write one line for the house scheduler, and nothing else.
The scheduler shall: run {job} on {host} every {number} {unit}"""


class Scheduler:
    """Lines such as `@web backup /2h`; only this file knows that."""

    description = "lines for an in-house scheduler"  # shown by `resd tasks`

    def examples(self, split: Split) -> Sequence[Example]:
        """2. The examples: always the same, in the same order, and no test prompt in training."""
        every = [
            {"job": job, "host": host, "number": number, "unit": unit}
            for number in range(2, 8)
            for unit in UNITS
            for host in HOSTS
            for job in JOBS
        ]
        chosen = [case for i, case in enumerate(every) if (i % 7 == 0) == (split == "test")]
        return [
            Example(
                id=f"{split}-{i:04d}",
                prompt=[{"role": "user", "content": PROMPT.format(**case)}],
                data=case,  # whatever evaluate() needs; the model never sees it
            )
            for i, case in enumerate(chosen)
        ]

    def evaluate(self, example: Example, response: str) -> Outcome:
        """3. The verdict: never raises, and gives the same answer for the same response.

        The feedback is what the method lives from. Say what was found and what is wrong with it, as
        a good compiler does; do not give the right answer away.
        """
        answer = final_text(response).strip()  # what stands after the thinking
        problems = self._problems(answer, example.data)
        return Outcome(
            reward=float(not problems),
            passed=not problems,
            feedback="; ".join(problems),
            # Partial credit for the metrics; the reward stays 0 or 1.
            cases_passed=4 - len(problems),
            cases=4,
        )

    def _problems(self, answer: str, case: dict[str, object]) -> list[str]:
        """What is wrong, at most four things."""
        parts = answer[:200].split()
        if len(parts) != 3:
            found = f"found {len(parts)} parts: {' '.join(parts)[:80]!r}"
            return [f"a line has three parts, {found}", "no host", "no job", "no interval"]
        host, job, interval = parts
        problems = []
        if not host.startswith("@"):
            problems.append(f"the first part is the host, marked with @, found {host[:40]!r}")
        elif host[1:] != case["host"]:
            problems.append(f"{host[:40]!r} is not the host that was asked for")
        if job not in JOBS:
            problems.append(f"the second part is the job, found {job[:40]!r}")
        elif job != case["job"]:
            problems.append(f"{job!r} is not the job that was asked for")
        number, unit = interval[1:-1], interval[-1:]
        if not interval.startswith("/") or unit not in UNITS.values() or not number.isdecimal():
            said = "a slash, a number and one of the letters h, d, w"
            problems.append(f"the third part is the interval: {said}, found {interval[:40]!r}")
        elif number != str(case["number"]) or unit != UNITS[str(case["unit"])]:
            problems.append(f"{interval[:40]!r} is not the interval that was asked for")
        return problems

    def gold(self, example: Example) -> str:
        """4. A right response, if you know one: `resd tasks check` sees that it scores 1.0."""
        case = example.data
        return f"@{case['host']} {case['job']} /{case['number']}{UNITS[case['unit']]}"
