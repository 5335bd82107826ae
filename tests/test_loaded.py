"""`resd.load_run` and `resd traces export`: what a run kept, as tables."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import make_run

import resd
from resd.cli import main
from resd.errors import UserError
from resd.report import tables

pandas = pytest.importorskip("pandas")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return resd.load_run(make_run(tmp_path_factory.mktemp("loaded") / "run"))


def test_it_holds_what_the_run_was_and_did(run: Any) -> None:
    assert (run.config.method.name, run.complete) == ("resd", True)
    assert list(run.metrics["step"]) == [0, 1, 2, 3, 3]
    assert list(run.metrics["train/loss"].dropna()) == pytest.approx([1, 0.5, 1 / 3])
    assert run.metrics is run.metrics  # read once


def test_rollouts_have_what_was_made_of_them(run: Any) -> None:
    table = run.rollouts.set_index(["step", "example"])
    assert len(table) == 6
    row = table.loc[(1, "train-0")]
    assert (row["response"], row["passed"], row["seed"]) == ("answer 0 said", False, 1000)
    assert (row["what_went_wrong"], row["what_to_do"]) == ("wrong said", "do said")
    assert row["operations"] == ["ADD lesson 1 said"]
    assert row["token_teacher"] == [-0.1, -4.0]
    assert row["prompt"][0]["content"] == "question 0"
    assert table.loc[(2, "train-0")]["rejected"][0].startswith("curation: ")
    assert table.loc[(2, "train-0")]["operations"] == []
    other = table.loc[(1, "train-1")]
    assert pandas.isna(other[["reflection", "teacher_prompt", "token_ids"]]).all()


def test_lessons_have_their_lives(run: Any) -> None:
    first = run.lessons.iloc[0]
    assert (first["content"], first["born"], first["died"]) == ("lesson 1 said", 1, 2)
    assert (first["example"], first["admitted"]) == ("train-0", True)


def test_the_playbook_is_what_it_was(run: Any) -> None:
    book = run.playbook_at(2)
    assert book.render() == "[sai-00002] helpful=0 harmful=0 :: lesson 2 said"
    with pytest.raises(UserError, match=r"no traces of a playbook at step 9; .* 1 to 3"):
        run.playbook_at(9)


def test_models_are_there_when_the_run_is_complete(run: Any) -> None:
    with pytest.raises(UserError, match="no best model yet"):
        run.model()
    with pytest.raises(UserError, match="not 'last'"):
        run.model("last")


def test_a_real_run_is_read_back(train_words: Any, tmp_path: Path) -> None:
    assert main(train_words("resd", train__steps=2)) == 0
    run = resd.load_run(str(tmp_path / "run"))
    assert len(run.rollouts) == 8
    assert set(run.rollouts["step"]) == {1, 2}
    assert run.model().config.model_type
    assert run.tokenizer("final").chat_template
    state = json.loads((tmp_path / "run" / "playbook.json").read_text())
    assert [e.id for e in run.playbook_at(2).all()] == [e["id"] for e in state["entries"]]
    assert len(run.lessons) >= len(state["entries"])


def test_nothing_heavy_is_imported_for_it() -> None:
    heavy = "[m for m in ('torch', 'pandas') if m in sys.modules]"
    code = f"import resd, sys; resd.load_run; print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("to", ["jsonl", "parquet", "datasets"])
def test_tables_are_exported(to: str, run: Any, tmp_path: Path, capsys: Any) -> None:
    if to != "jsonl":
        pytest.importorskip("datasets" if to == "datasets" else "pyarrow")
    words = ["traces", "export", str(run.path), "--to", to, "--output", str(tmp_path / "out")]
    assert main(words) == 0
    assert main(words) == 0  # again, in its place
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 8
    counts = {}
    for name in tables.TABLES:
        if to == "jsonl":
            text = (tmp_path / "out" / f"{name}.jsonl").read_text()
            counts[name] = [json.loads(line) for line in text.splitlines()]
        elif to == "parquet":
            frame = pandas.read_parquet(tmp_path / "out" / f"{name}.parquet")
            counts[name] = frame.to_dict("records")
        else:
            import datasets

            counts[name] = list(datasets.load_from_disk(str(tmp_path / "out" / name)))
    assert {k: len(v) for k, v in counts.items()} == {
        "metrics": 5,
        "rollouts": 6,
        "lessons": 3,
        "answers": 4,
    }
    assert list(counts["rollouts"][0]["token_loss"]) == [0.1, 1.0]
    assert counts["answers"][1]["response"] == "answer 1 said"


def test_what_is_missing_is_named(run: Any, monkeypatch: Any, tmp_path: Path, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    fresh = resd.load_run(run.path)
    with pytest.raises(UserError, match=r"needs pandas: pip install 'resd\[data\]'"):
        fresh.rollouts  # noqa: B018
    empty = make_run(tmp_path / "run")
    for file in (empty / "traces").iterdir():
        file.unlink()
    assert main(["traces", "export", str(empty)]) == 2
    assert "has no traces to export (yet); traces.keep must be on" in capsys.readouterr().err
