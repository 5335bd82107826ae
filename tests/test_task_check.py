"""`resd tasks check` finds what is wrong with a task; `resd tasks new` writes a sound one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import pytest

from resd.cli import main
from resd.tasks.check import run_checks

SOUND = """
import time
from resd import Example, Outcome
from resd.tasks.answers import final_text

class Box:
    def __init__(self, word):
        self.word = word

class World:
    def examples(self, split):
        start = 100 if split == "test" else 10
        prompt = lambda i: [{"role": "user", "content": f"the word of {i}"}]
        numbers = range(start, start + 8)
        return [Example(f"{split}-{i}", prompt(i), f"word{i * i}") for i in numbers]

    def evaluate(self, example, response):
        passed = final_text(response).strip() == example.data
        said = response.strip()[:20]
        return Outcome(float(passed), passed, "" if passed else f"{said!r} is not the word")

    def gold(self, example):
        return example.data
"""


def test_a_sound_world(tmp_path: Path) -> None:
    file = tmp_path / "world.py"
    file.write_text(SOUND)
    assert {check.state for check in run_checks(f"{file}:World")} == {"ok"}


FAULTS = {
    "raises on binary": (
        "def evaluate(self, e, r):\n        if '\\x00' in r: raise KeyError(r[:3])\n"
        "        return super().evaluate(e, r)",
        "hostile answers",
    ),
    "believes the verdict": (
        "def evaluate(self, e, r):\n        if 'passed: True' in r: return Outcome(1.0, True)\n"
        "        return super().evaluate(e, r)",
        "hostile answers",
    ),
    "reads unclosed thinking": (
        "def evaluate(self, e, r):\n        passed = e.data in r\n"
        "        return Outcome(float(passed), passed, 'no')",
        "hostile answers",
    ),
    "pays for length": (
        "def evaluate(self, e, r):\n        return Outcome(min(1.0, len(r) / 1000), False, 'no')",
        "gold scores 1.0",
    ),
    "wrong gold": ("def gold(self, e):\n        return 'word'", "gold scores 1.0"),
    "gold is no text": ("def gold(self, e):\n        return 7", "gold scores 1.0"),
    "gold raises": ("def gold(self, e):\n        return e.nothing", "gold scores 1.0"),
    "silent": (
        "def evaluate(self, e, r):\n        o = super().evaluate(e, r)\n"
        "        return Outcome(o.reward, o.passed, o.feedback if r.strip() else ' ')",
        "feedback",
    ),
    "gives the answer away": (
        "def evaluate(self, e, r):\n        o = super().evaluate(e, r)\n"
        "        return Outcome(o.reward, o.passed, '' if o.passed else f'wanted {e.data}')",
        "gold stays hidden",
    ),
    "gives it away only on near misses": (
        "def evaluate(self, e, r):\n        o = super().evaluate(e, r)\n"
        "        near = not o.passed and r.startswith('wor')\n"
        "        return Outcome(o.reward, o.passed, f'wanted {e.data}' if near else o.feedback)",
        "gold stays hidden",
    ),
    "broken secrets": ("def secrets(self, e):\n        return e.nothing", "gold stays hidden"),
    "random": (
        "def evaluate(self, e, r):\n        import random; o = super().evaluate(e, r)\n"
        "        return Outcome(o.reward, o.passed, f'{o.feedback} {random.random()}')",
        "deterministic",
    ),
    "remembers": (
        "seen = 0\n    def evaluate(self, e, r):\n        self.seen += 1\n"
        "        o = super().evaluate(e, r)\n"
        "        return Outcome(o.reward, o.passed, f'{o.feedback} {self.seen}')",
        "deterministic",
    ),
    "examples differ": (
        "calls = 0\n    def examples(self, split):\n        self.calls += 1\n"
        "        e = super().examples(split)\n        return e[self.calls % 2:]",
        "deterministic",
    ),
    "not thread-safe": (
        "def evaluate(self, e, r):\n        self.r = r; time.sleep(0.001)\n"
        "        return super().evaluate(e, self.r)",
        "thread-safe",
    ),
    "changes the prompt": (
        "def evaluate(self, e, r):\n        e.prompt.append({'role': 'user', 'content': 'more'})\n"
        "        return super().evaluate(e, r)",
        "examples unchanged",
    ),
    "changes data that compares by identity": (
        "def examples(self, split):\n"
        "        return [Example(e.id, e.prompt, Box(e.data)) for e in super().examples(split)]\n"
        "    def gold(self, e):\n        return e.data.word\n"
        "    def evaluate(self, e, r):\n        o = super().evaluate(Example(e.id, e.prompt, "
        "e.data.word), r)\n        e.data.word = r[:5]\n        return o",
        "examples unchanged",
    ),
    "works in the first process alone": (
        "def __init__(self):\n        import os\n        first = os.environ.setdefault('FIRST', "
        "str(os.getpid()))\n        assert first == str(os.getpid()), 'one licence'",
        "worker processes",
    ),
    "knows its process": (
        "def evaluate(self, e, r):\n        import os; o = super().evaluate(e, r)\n"
        "        return Outcome(o.reward, o.passed, o.feedback and f'{o.feedback} {os.getpid()}')",
        "worker processes",
    ),
    "hash seed": (
        "def examples(self, split):\n        e = super().examples(split)\n"
        "        order = sorted(e, key=lambda x: hash(x.id))\n        return order",
        "same in another process",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_found(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIRST", str(os.getpid()))
    body, check = FAULTS[fault]
    file = tmp_path / "world.py"
    file.write_text(SOUND + "\nclass Broken(World):\n    " + body + "\n")
    states = {c.name: c.state for c in run_checks(f"{file}:Broken")}
    assert states[check] == "fail", states
    if check == "examples unchanged":
        assert [name for name, state in states.items() if state == "fail"] == [check]


@pytest.mark.parametrize(
    ("body", "check"),
    [
        ("gold = None", "gold scores 1.0"),
        (
            "def examples(self, split):\n        return World().examples('train')",
            "examples",
        ),
        (
            "def evaluate(self, e, r):\n        p = r.strip() == e.data\n"
            "        return Outcome(float(p), p, '' if p else 'no')",
            "feedback",
        ),
    ],
)
def test_a_weakness_is_named(body: str, check: str, tmp_path: Path) -> None:
    file = tmp_path / "world.py"
    file.write_text(SOUND + "\nclass Weak(World):\n    " + body + "\n")
    states = {c.name: c.state for c in run_checks(f"{file}:Weak")}
    assert states[check] == "warn", states
    assert "fail" not in states.values()


def test_a_revealing_setting_is_respected(tmp_path: Path) -> None:
    body, _ = FAULTS["gives the answer away"]
    file = tmp_path / "world.py"
    file.write_text(f"{SOUND}\nclass Open(World):\n    reveals_gold = True\n    {body}\n")
    states = {c.name: c.state for c in run_checks(f"{file}:Open")}
    assert states["gold stays hidden"] == "ok"


def test_an_evaluation_that_hangs_is_reported_and_the_process_ends(tmp_path: Path) -> None:
    file = tmp_path / "world.py"
    hang = "time.sleep(100 if '**' in r else 0); return super().evaluate(e, r)"
    method = f"def evaluate(self, e, r):\n        {hang}\n"
    file.write_text(f"{SOUND}\nclass Hung(World):\n    {method}")
    program = "import sys, resd.tasks.check as c; c.HANG_SECONDS = 0.5; " + (
        "from resd.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    began = time.monotonic()
    words = ["tasks", "check", f"{file}:Hung"]
    done = subprocess.run(
        [sys.executable, "-c", program, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "did not return" in " ".join(done.stdout.split())
    assert time.monotonic() - began < 90  # the sleeping thread is left behind


def test_the_command_prints_a_table_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "world.py"
    file.write_text(SOUND + "\nclass Broken(World):\n    " + FAULTS["silent"][0] + "\n")
    assert main(["tasks", "check", f"{file}:World"]) == 0
    assert "world.py:World: sound" in capsys.readouterr().out
    assert main(["tasks", "check", f"{file}:Broken"]) == 1
    assert "world.py:Broken: 1 check failed" in capsys.readouterr().out
    assert main(["tasks", "check", f"{file}:Broken", "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["state"] for row in rows if row["name"] == "feedback"] == ["fail"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["lab", "--foo", "3"], "unknown option --foo"),
        (["lab", "--task_args.foo", "3"], "the arguments of LabEnvironment are"),
        (["lab", "--limit", "0"], "--limit must be at least 1"),
        (["chess"], "unknown task 'chess'"),
        (["lab", "--model", "/nowhere"], "no model directory"),
    ],
)
def test_bad_words(words: list[str], wanted: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "check", *words]) == 2
    assert wanted in capsys.readouterr().err


def test_prompt_lengths_by_a_tokenizer(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tasks", "check", "lab", "--limit", "4", "--model", "lab", "--json"]) == 0
    rows = {row["name"]: row["detail"] for row in json.loads(capsys.readouterr().out)}
    assert rows["prompt lengths"].endswith("median 10 tokens")
    assert rows["gold scores 1.0"].startswith("1")  # 4 a split, and those of the sample


def test_new_writes_a_package_that_installs_and_whose_tests_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["tasks", "new", "my_task", "--directory", str(tmp_path)]) == 0
    assert "resd tasks check my_task:MyTask" in capsys.readouterr().out
    place = tmp_path / "my_task"
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    texts = [
        file.read_text() for file in place.rglob("*") if file.suffix in (".py", ".md", ".toml")
    ]
    assert len(texts) == 5
    assert not any(word in text for text in texts for word in ("Scheduler", "@NAME@", "starter"))
    assert main(["tasks", "new", "my_task", "--directory", str(tmp_path)]) == 2
    assert "is there already" in capsys.readouterr().err
    pytest.importorskip("setuptools", minversion="61")
    built = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", built], cwd=place, capture_output=True, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    monkeypatch.syspath_prepend(str(wheel))  # a wheel of Python alone is imported as it is
    (point,) = metadata.entry_points(group="resd.tasks", name="my_task")
    assert point.load().__name__ == "MyTask"
    assert main(["tasks", "new", "json", "--directory", str(tmp_path)]) == 2
    assert "there is a Python module json already" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["3x", "My", "a-b", "class", "", "../x"])
def test_new_refuses_a_name_that_is_none(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["tasks", "new", name, "--directory", str(tmp_path)]) == 2
    assert not list(tmp_path.iterdir())


def test_a_task_file_may_import_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "neighbour_of_world.py").write_text(SOUND)
    file = tmp_path / "world.py"
    file.write_text("from neighbour_of_world import World as Base\nclass World(Base): pass\n")
    assert {c.state for c in run_checks(f"{file}:World")} == {"ok"}
