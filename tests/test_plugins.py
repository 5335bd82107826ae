"""Methods, engines and tasks of one's own: examples, entry points, mistakes, changed sources."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bad_input import Capture, Words, one_line

import resd
from resd.cli import main
from resd.compare.variants import parse_variants
from resd.config import ResdConfig, find_method, load_config
from resd.errors import UserError
from resd.runs import read_metrics
from resd.tasks.registry import find_class

EXAMPLES = Path(__file__).parents[1] / "examples"
METHOD = EXAMPLES / "my_method.py"
ENGINE = EXAMPLES / "my_engine.py"

Refused = Callable[..., str]


def words_of(train_words: Words, **over: Any) -> list[str]:
    """A run of one step by the example's method."""
    given = {"rollout__env_mode": "thread", "evaluation__at_start": False, "train__steps": 1}
    words = train_words("sdpo", **{**given, **over})
    at = words.index("--method.name")
    return words[:at] + words[at + 2 :]


def test_the_examples_are_short_and_run(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("my_house.py", "my_method.py", "my_engine.py"):
        assert len((EXAMPLES / name).read_text().splitlines()) <= 60
    monkeypatch.chdir(EXAMPLES.parent)
    log = tmp_path / "speed.jsonl"
    words = ["--method", "examples/my_method.py:KeepSuccesses", "--method.keep", "2"]
    words += ["--engine.kind", "examples/my_engine.py:ENGINE", "--engine.args.log", str(log)]
    task = "examples/my_house.py:House"
    assert main([*words_of(train_words, task=task, rollout__max_new_tokens=6), *words]) == 0
    row = next(row for row in read_metrics(tmp_path / "run") if "rollout/passed" in row)
    assert row["keep/prompts_solved"] == 0  # a random model, and a private language
    batches = [json.loads(line) for line in log.read_text().splitlines()]
    assert [batch["requests"] for batch in batches] == [16, 8]  # 4 prompts of 4, 4 of 2
    config = resd.load_run(tmp_path / "run").config
    assert config.method.name == f"{METHOD}:KeepSuccesses"
    assert config.engine.kind == f"{ENGINE}:ENGINE"


def test_the_examples_method_learns_what_passed(train_words: Words, tmp_path: Path) -> None:
    """The tiny world passes every fourth response: their likelihood rises."""
    words = [*words_of(train_words, train__steps=2), "--method", f"{METHOD}:KeepSuccesses"]
    assert main([*words, "--method.rollouts", "8"]) == 0
    rows = [row for row in read_metrics(tmp_path / "run") if "train/loss" in row]
    assert rows[0]["keep/prompts_solved"] > 0
    assert rows[0]["train/loss"] > rows[1]["train/loss"] > 0  # the same prompts again


def test_a_changed_source_is_refused_until_it_is_accepted(
    train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    method = Path(shutil.copy(METHOD, tmp_path / "own_method.py"))
    engine = Path(shutil.copy(ENGINE, tmp_path / "own_engine.py"))
    words = ["--method", f"{method}:KeepSuccesses", "--engine.kind", f"{engine}:ENGINE"]
    words += ["--engine.args.log", str(tmp_path / "log")]
    assert main([*words_of(train_words), *words]) == 0
    capsys.readouterr()
    resume = ["train", "--resume", str(tmp_path / "run"), "--train.steps", "2"]
    for file, what in ((method, "method"), (engine, "engine")):
        text = file.read_text()
        file.write_text(f"{text}# changed\n")
        assert main(resume) == 2
        line = one_line(capsys)
        assert f"the source of {what} {file}:" in line and f"--accept {what}" in line
        file.write_text(text)
    method.write_text(METHOD.read_text().replace("keep: int", "most: int"))
    assert main([*resume, "--accept", "method"]) == 2
    assert "unknown key method.keep in" in one_line(capsys)  # its settings are others now
    method.write_text(f"{METHOD.read_text()}# changed\n")
    assert main([*resume, "--accept", "method"]) == 0
    assert read_metrics(tmp_path / "run")[-1]["step"] == 2
    # Whoever only looks at a run runs none of its code, and does not need it.
    method.write_text("raise AssertionError('it was run')\n")
    assert resd.load_run(tmp_path / "run").config.method.keep == 1  # type: ignore[union-attr]
    method.unlink()
    assert resd.load_run(tmp_path / "run").complete
    capsys.readouterr()
    assert main([*resume[:-1], "3", "--accept", "method"]) == 2
    assert f"method file {method} does not exist" in one_line(capsys)


BAD = {
    "fails.py": "import resd\nboom()\n",
    "none.py": "from resd.methods import Method\nclass Mine(Method):\n    config_class = dict\n",
    "other.py": "class Mine: ...\n",
    "kind.py": "ENGINE = 3\n",
}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "nowhere.py:M"], "method file nowhere.py does not exist"),
        (["--method", "fails.py:M"], "method file fails.py failed: NameError"),
        (["--method", "none.py:Mine"], "Mine.config_class must be a class of settings"),
        (["--method", "other.py:Mine"], "no method Mine in other.py; it has: none"),
        (["--method", f"{METHOD}:Kep"], "no method Kep in .*; it has: KeepSuccesses"),
        (["--method", "rsed"], "unknown method 'rsed' on the command line; did you mean resd"),
        (["--method", "no_such_module:M"], "method module no_such_module cannot be imported"),
        (
            ["--method", f"{METHOD}:KeepSuccesses", "--method.kep", "2"],
            "unknown key method.kep on the command line; did you mean keep?; known here: name, ",
        ),
        (
            ["--method", f"{METHOD}:KeepSuccesses", "--method.keep", "0"],
            "method.keep on the command line: Input should be greater than or equal to 1",
        ),
        (["--engine.kind", "nowhere.py:E"], "engine file .*nowhere.py does not exist"),
        (["--engine.kind", "kind.py:ENGINE"], "no EngineKind ENGINE in .*kind.py; it has: none"),
        (["--engine.kind", f"{ENGINE}:ENGINE"], "this engine wants log, a file; found"),
        (["--engine.args.log", "x"], "it is an option of engines of your own; leave it out"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    said: str,
    refused: Refused,
    train_words: Words,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in BAD.items():
        (tmp_path / name).write_text(text)
    line = refused(words=[*words_of(train_words), *words])
    assert re.search(said.replace("?", r"\?"), line), line


def test_a_method_is_one_class_and_each_environment_has_a_module_of_its_own() -> None:
    """Settings and loop ask for the method; a stream asks several times for one task's file."""
    method, task = f"{METHOD}:KeepSuccesses", f"{EXAMPLES / 'my_house.py'}:House"
    assert find_method(method) is find_method(method)
    assert find_class(task) is not find_class(task)


def test_the_help_shows_its_settings(capsys: Capture) -> None:
    named = f"{METHOD}:KeepSuccesses"
    assert main(["train", "--method", named, "--help"]) == 0
    shown = capsys.readouterr().out
    keep = "--method.keep\n    most successes of one prompt that teach\n    type: whole number"
    assert keep in shown and "--method.anchors.weight\n" in shown
    assert "--method.reflection_tokens" not in shown
    assert main(["train", "--help", named]) == 0
    assert capsys.readouterr().out == shown
    assert main(["train", "--method", "grpp", "--help"]) == 2
    assert "did you mean grpo?" in one_line(capsys)


def test_one_that_adds_to_a_built_in_method_keeps_what_its_preset_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("more.py")
    file.write_text(
        "from resd.config import ResdConfig\nfrom resd.methods import Resd\n"
        "class MoreConfig(ResdConfig):\n    more: int = 1\n"
        "class More(Resd):\n    config_class = MoreConfig\n"
        "class Same(Resd): ...\n"
    )
    lab = load_config(None, [("preset", "lab")]).method
    for name, extra in (("More", {"more"}), ("Same", set())):
        own = load_config(None, [("preset", "lab"), ("method.name", f"{file}:{name}")]).method
        assert isinstance(own, ResdConfig)
        ours, its = own.model_dump(), lab.model_dump()
        assert ours.keys() - its.keys() == extra
        assert {k: v for k, v in ours.items() if k in its and k != "name"} == {
            k: v for k, v in its.items() if k != "name"
        }
    variants = parse_variants(f"resd,{file}:More", [], lambda text: ("", ""))
    assert [variant.label for variant in variants] == ["resd", f"{file}:More"]


# -- installed packages --------------------------------------------------------------------------

PACKAGE = """
import sys
sys.path.insert(0, {examples!r})
from my_house import House as Task
if "torch" in sys.modules:  # a process that only evaluates has none
    from my_engine import ENGINE
    from my_method import KeepSuccesses
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with an entry point of every kind, as pip leaves it."""
    place = tmp_path / "site"
    info = place / "houses-1.0.dist-info"
    info.mkdir(parents=True)
    (place / "houses.py").write_text(PACKAGE.format(examples=str(EXAMPLES)))
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: houses\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[resd.tasks]\nhouse = houses:Task\nbroken = no_such_module:Task\n"
        "[resd.methods]\nkeep = houses:KeepSuccesses\n"
        "[resd.engines]\nlogged = houses:ENGINE\n"
    )
    monkeypatch.syspath_prepend(place)
    monkeypatch.delitem(sys.modules, "houses", raising=False)
    return place


def test_what_a_package_offers_is_listed_and_meant(
    installed: Path, train_words: Words, refused: Refused, capsys: Capture
) -> None:
    assert main(["tasks"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "house" in shown and "task module no_such_module cannot be imported" in shown
    assert "methods: resd, sdpo, sdpo_ss, grpo, handoff, keep" in shown
    assert "engines: hf, vllm, vllm_server, logged" in shown
    words = words_of(train_words)
    for given, said in (
        (["--task", "hous"], "unknown task 'hous'; did you mean house?"),
        (["--method", "kep"], "did you mean keep?"),
        (["--engine.kind", "loged"], "did you mean logged?"),
    ):
        assert said in refused(words=[*words, *given])


def test_what_a_package_offers_is_trained_with(
    installed: Path, train_words: Words, tmp_path: Path, capsys: Capture
) -> None:
    log = tmp_path / "log"
    over = {"task": "house", "engine__kind": "logged", "engine__args__log": str(log)}
    over |= {"rollout__env_mode": "process", "rollout__max_new_tokens": 6}
    assert main([*words_of(train_words, **over), "--method", "keep"]) == 0
    config = resd.load_run(tmp_path / "run").config
    assert (config.task, config.method.name, config.engine.kind) == ("house", "keep", "logged")
    assert log.is_file()
    identity = json.loads((tmp_path / "run" / "identity.json").read_text())
    assert len({identity[kind] for kind in ("task", "method", "engine")} - {None}) == 1
    capsys.readouterr()
    (installed / "houses.py").write_text(f"{(installed / 'houses.py').read_text()}# changed\n")
    assert main(["train", "--resume", str(tmp_path / "run"), "--train.steps", "2"]) == 2
    assert "the source of" in one_line(capsys)


def test_two_packages_that_offer_one_name(installed: Path) -> None:
    info = installed / "other-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[resd.tasks]\nhouse = elsewhere:Task\n")
    with pytest.raises(UserError, match=r"two installed packages offer a task house: .*elsewhere"):
        resd.train("house", "lab")
