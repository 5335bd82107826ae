"""The page of a run without a browser: what it holds, its size, what no text can do to it."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import compared
import pytest
from pages import HOSTILE, make_run, unpacked

from resd.cli import main, report
from resd.errors import UserError
from resd.loop.view import PlainView
from resd.loop.watch import watch
from resd.report.lessons import lessons
from resd.report.page import data as page_data_module
from resd.report.page import run_page, write_page
from resd.report.page.comparison import pairs, sign_test
from resd.report.page.data import LEVELS, first_level, page_data
from resd.report.page.summary import curves
from resd.report.stories import StepTraces


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("page") / "run")


@pytest.fixture(scope="module")
def data(made: Path) -> dict[str, Any]:
    return unpacked(run_page(made))


# -- what it holds ---------------------------------------------------------------------------------


def test_the_summary_says_what_changed_and_what_it_cost(data: dict[str, Any]) -> None:
    head = data["headline"]
    assert (head["task"], head["method"], head["rollouts"]) == ("lab", "resd", 6)
    assert (head["start"]["mean"], head["best"]["mean"]) == (0.0, 0.3)
    assert (head["best"]["step"], head["best"]["name"]) == (3, "mean@4")
    assert head["baselines"] == {"copying": 0.05}
    assert data["cost"]["tokens"] == [["evaluation", 80], ["reflection", 21], ["rollout", 30]]
    assert data["cost"]["seconds"] == [["update", 3.0]]
    assert data["cost"]["total_seconds"] == 4.5
    assert data["warnings"] == [{"step": 1, "text": "a warning, said"}]
    assert (data["last"], data["steps"], data["complete"]) == (3, 3, True)


def test_the_same_problems_are_shown_before_and_after(data: dict[str, Any]) -> None:
    answers = data["answers"]
    assert answers["steps"] == [0, 3]
    assert [row["example"] for row in answers["rows"]] == ["train-0", "train-1"]
    text, passed, feedback = answers["rows"][1]["at"]["3"]
    assert (data["texts"][text], passed) == ("answer 1 said", True)
    assert data["texts"][feedback] == "feedback said"


def test_the_curves_are_those_of_the_metrics(data: dict[str, Any]) -> None:
    charts = {chart["title"]: chart for chart in data["curves"]}
    accuracy = {line["name"]: line for line in charts["Accuracy on the test problems"]["lines"]}
    assert accuracy["mean@4, best@4"]["x"] == [0, 3]  # they lie on each other
    assert accuracy["mean@4, best@4"]["y"] == [0.0, 0.3]
    assert accuracy["trivial: copying"]["dashed"]
    assert charts["Loss"]["lines"][0]["y"] == [1.0, 0.5, 0.33333]
    assert charts["Written texts rejected"]["lines"][0]["name"] == "op unknown id"
    assert charts["Seconds of a step"]["kind"] == "stack"
    assert "Test cases passed" not in charts  # they say the same as whole problems
    assert "Entropy of the student" not in charts


def test_a_step_without_a_count_had_none_of_it() -> None:
    rows = [{"step": s, "rollout/passed": 0.0} for s in (1, 2, 3)]
    rows[1]["count/op_unknown_id"] = 4
    (chart,) = [c for c in curves(rows) if c["title"] == "Written texts rejected"]
    assert chart["lines"] == [
        {"name": "op unknown id", "dashed": False, "x": [1, 2, 3], "y": [0, 4, 0]}
    ]


def test_of_many_counts_the_small_ones_are_added_up() -> None:
    rows = [{"step": s, "rollout/passed": 0.0} for s in (1, 2)]
    for number in range(12):
        rows[0][f"count/reflection_{number}"] = number + 1
    (chart,) = [c for c in curves(rows) if c["title"] == "Written texts rejected"]
    assert chart["lines"][0]["name"] == "reflection 11"
    assert len(chart["lines"]) == 8
    assert chart["lines"][-1]["name"] == "other"
    assert sum(line["y"][0] for line in chart["lines"]) == sum(range(1, 13))


def test_every_lesson_has_its_birth_and_its_death(data: dict[str, Any]) -> None:
    book = data["playbook"]
    assert book["steps"] == [1, 2, 3]
    first, _, last = book["lessons"]
    assert (first["content"], first["born"], first["died"]) == ("lesson 1 said", 1, 2)
    assert first["reason"] == "no reflection found a use for it"
    assert (last["died"], last["states"]) == (None, [[3, 0, 0, 1, 0, True]])
    for lesson in book["lessons"]:
        story = data["stories"][lesson["story"]]
        assert (story["step"], story["example"]) == (lesson["born"], lesson["example"])


def test_a_lesson_of_another_task_s_playbook_is_another() -> None:
    def traces(step: int, *events: tuple[str, str], there: tuple[str, ...]) -> StepTraces:
        told = [{"what": what, "id": id_, "detail": "", "evidence": ""} for what, id_ in events]
        counts = dict.fromkeys(("helpful", "harmful", "support", "against"), step)
        seen = {"admitted": True, **counts}
        entries = [{"id": id_, "content": f"{id_} {step}", **seen} for id_ in there]
        return StepTraces(step, [], told, {"entries": entries})

    found = lessons(
        [
            traces(1, ("added", "a"), ("added", "b"), there=("a", "b")),
            traces(2, there=("a", "b")),
            traces(3, ("added", "a"), there=("a",)),
            traces(5, ("dropped", "a"), ("added", "a"), there=("a", "c")),
        ]
    )
    left = "left with its playbook"
    assert [(x.id, x.born, x.died, x.reason) for x in found] == [
        ("a", 1, 3, left),
        ("b", 1, 3, left),
        ("a/2", 3, 5, ""),
        ("a/3", 5, None, ""),
        ("c", 5, None, ""),  # its birth was not kept
    ]
    assert found[0].content == "a 2"
    assert [state[0] for state in found[0].states] == [1, 2]


def test_the_story_of_an_example_is_whole(data: dict[str, Any]) -> None:
    texts, story = data["texts"], data["stories"][0]
    assert (story["step"], story["example"], story["passed"]) == (1, "train-0", False)
    assert texts[story["prompt"]] == "question 0"
    assert texts[story["response"]] == "answer 0 said"
    assert texts[story["feedback"]] == "feedback said"
    reflection, curation = story["written"]
    assert [texts[text] for _, text in reflection["read"]] == ["wrong said", "do said"]
    assert [(name, texts[text]) for name, text in curation["read"]] == [
        ("ADD", "sai: lesson 1 said")
    ]
    assert texts[reflection["prompt"]] == "reflect on said"
    assert [(name, texts[text]) for name, text in story["teacher"]] == [
        ("", "notes\n"),
        ("playbook", "lesson 1 said"),
        ("", "\n"),
        ("question", "question 0"),
        ("", "\nanswer 0 said"),
    ]
    assert story["numbers"]["teacher"] == [-0.1, -4.0]
    assert story["loss"] == pytest.approx(0.55)


def test_what_was_rejected_can_be_found(data: dict[str, Any]) -> None:
    rejected = [story for story in data["stories"] if story["rejected"]]
    assert [(story["step"], story["example"]) for story in rejected] == [(2, "train-0")]
    assert rejected[0]["rejected"][0].startswith("curation: ")


# -- what no text can do to it ---------------------------------------------------------------------


def test_no_text_of_a_model_is_read_as_html(tmp_path: Path) -> None:
    html = run_page(make_run(tmp_path / "run", text=HOSTILE))
    assert any(HOSTILE in text for text in unpacked(html)["texts"])
    shown = re.sub(r'<script type="text/plain".*?</script>', "", html, flags=re.S)
    assert "onerror" not in shown and "onload" not in shown
    assert html.count("<script") == 2
    assert html.count("</script>") == 2


def test_a_name_cannot_be_html_either(tmp_path: Path) -> None:
    html = run_page(make_run(tmp_path / "<img src=x onerror=alert(1)>"))
    assert "<img" not in html


def test_nothing_is_asked_of_the_network(data: dict[str, Any], made: Path) -> None:
    html = run_page(made)
    assert "default-src 'none'" in html
    names = set(re.findall(r"https?://[^\s\"'<>`]+", html))
    assert names == {"http://www.w3.org/2000/svg"}  # a name, not an address
    for word in ("fetch(", "XMLHttpRequest", "import(", "@import", '<link rel="stylesheet'):
        assert word not in html


def test_the_scripts_write_text_alone(made: Path) -> None:
    html = run_page(made)
    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in html


# -- how large it is -------------------------------------------------------------------------------


def test_a_page_that_is_too_large_shows_less_of_the_stories(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", batch=6, noise=15_000)
    whole = run_page(run)
    small = run_page(run, most=20_000)
    assert len(small) < 100_000 < len(whole)
    data = unpacked(small)
    level = LEVELS[data["level"]]
    assert data["level"] > 2
    shown = [(story["step"], bool(story["numbers"])) for story in data["stories"]]
    assert [numbered for step, numbered in shown if step == 1] == [True, *[False] * level.plain]
    assert data["left_out"] == 18 - len(shown) > 0
    assert max(map(len, data["texts"])) < level.characters + 100
    # Links lead to the stories that are there.
    for lesson in data["playbook"]["lessons"]:
        assert data["stories"][lesson["story"]]["step"] == lesson["born"]


def test_much_that_was_kept_is_not_tried_whole(tmp_path: Path, monkeypatch: Any) -> None:
    run = make_run(tmp_path / "run")
    assert first_level(run) == 0
    monkeypatch.setattr(page_data_module, "_TOO_MUCH", (1, 2, 1e12))
    assert first_level(run) == 2
    assert unpacked(run_page(run))["level"] == 2


@pytest.mark.parametrize("level", range(len(LEVELS)))
def test_every_level_shows_no_more_than_it_says(level: int, made: Path) -> None:
    data, wanted = page_data(made, level), LEVELS[level]
    steps = [1, 2, 3][:: wanted.every]
    assert sorted({story["step"] for story in data["stories"]}) == steps
    for story in data["stories"]:
        assert all((w["prompt"] is not None) == wanted.prompts for w in story["written"])
        for row in story["numbers"]["teacher_top"] if story["numbers"] else []:
            assert len(row) <= wanted.alternatives
    assert len(data["stories"]) + data["left_out"] == 6


def test_text_that_many_prompts_share_is_kept_once(data: dict[str, Any]) -> None:
    assert len(set(data["texts"])) == len(data["texts"])


# -- the command -----------------------------------------------------------------------------------


def test_a_page_of_a_real_run(train_words: Any, tmp_path: Path, capsys: Any) -> None:
    assert main(train_words("resd")) == 0
    run = tmp_path / "run"
    capsys.readouterr()
    assert main(["report", str(run)]) == 0
    assert capsys.readouterr().out == f"written to {run / 'report.html'}\n"
    data = unpacked((run / "report.html").read_text())
    assert len(data["stories"]) == 16
    assert sum(story["numbers"] is not None for story in data["stories"]) == 16
    assert {story["step"] for story in data["stories"]} == {1, 2, 3, 4}
    assert data["answers"]["steps"] == [0, 2, 4]
    assert {"Loss", "Tokens generated", "Playbook"} <= {c["title"] for c in data["curves"]}
    told = {name for story in data["stories"] for name, _ in story["teacher"] or [] if name}
    assert {"question", "feedback", "trial"} <= told


@pytest.mark.parametrize("method", ["grpo", "sdpo"])
def test_methods_without_a_playbook_have_a_page(
    method: str, train_words: Any, tmp_path: Path
) -> None:
    assert main(train_words(method, train__steps=2)) == 0
    data = unpacked(run_page(tmp_path / "run"))
    assert data["playbook"] == {"steps": [], "lessons": []}
    assert data["stories"]


def test_a_run_without_traces_has_a_page(train_words: Any, tmp_path: Path) -> None:
    assert main(train_words("sdpo", train__steps=2, traces=False)) == 0
    data = unpacked(run_page(tmp_path / "run"))
    assert (data["stories"], data["answers"]["rows"]) == ([], [])
    assert data["curves"]


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("metrics.jsonl", "warnings.jsonl", "done.json"):
        (run / name).unlink()
    for file in (run / "traces").iterdir():
        file.unlink()
    data = unpacked(run_page(run, every=10))
    assert (data["last"], data["complete"], data["curves"]) == (0, False, [])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report", "nowhere"], "there is no run directory nowhere"),
        (["report", "."], "it has no config.toml"),
        (["report", "run", "--output", "."], "--output: . is a directory"),
        (["report", "nowhere", "--follow"], "--follow: nowhere is no run"),
        (["watch", "nowhere"], "there is no run directory nowhere"),
        (["traces", "export", "nowhere"], "there is no run directory nowhere"),
        (["traces", "export", "run", "--to", "csv"], "unknown --to 'csv'"),
        (["traces", "export", "run", "--output", "file"], "--output: file is a file"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str], said: str, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run")
    (tmp_path / "file").touch()
    assert main(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_a_run_that_goes_on_is_followed_to_its_end(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    run = make_run(tmp_path / "run")
    done = (run / "done.json").read_text()
    (run / "done.json").unlink()
    pages_made: list[str] = []

    def sleep(seconds: float) -> None:
        pages_made.append((run / "report.html").read_text())
        if len(pages_made) == 2:
            (run / "done.json").write_text(done)

    monkeypatch.setattr(report.time, "sleep", sleep)
    opened: list[str] = []
    monkeypatch.setattr(report.webbrowser, "open", opened.append)
    assert main(["report", str(run), "--follow", "--open"]) == 0
    assert len(pages_made) == 2
    assert all('data-every="10"' in html for html in pages_made)
    last = (run / "report.html").read_text()
    assert 'data-every="0"' in last
    assert unpacked(last)["complete"]
    assert opened == [(run / "report.html").as_uri()]
    assert capsys.readouterr().out.count("written to") == 2


def test_a_run_elsewhere_is_watched(tmp_path: Path, capsys: Any) -> None:
    run = make_run(tmp_path / "run")
    done, rows = (run / "done.json").read_text(), (run / "metrics.jsonl").read_text().splitlines()
    (run / "done.json").unlink()
    (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in rows[:2]))
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        (run / "metrics.jsonl").write_text("".join(f"{line}\n" for line in rows[: 2 + len(waits)]))
        if len(waits) == 3:
            (run / "done.json").write_text(done)

    watch(run, PlainView(), wait)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].startswith("resd on lab, 3 steps")
    assert [line[:8] for line in lines if line.startswith("step")] == [
        "step 0  ",
        "step 1/3",
        "step 2/3",
        "step 3/3",
        "step 3  ",
    ]
    assert "learnt: lesson 2 said" in said.out
    assert "mean@4 0.300  best@4 0.300" in said.out
    assert "trivial: copying 0.050" in said.out
    assert lines[-1].startswith("done: ")
    assert said.err == "warning: a warning, said\n"
    assert len(waits) == 3


# -- a comparison ----------------------------------------------------------------------------------


def test_the_page_of_a_comparison(tmp_path: Path) -> None:
    output = tmp_path / "out"
    code, _ = compared.go(output, compared.Fake(), seeds="0,1")
    assert code == 0
    write_page(output, output / "report.html")
    data = unpacked((output / "report.html").read_text())
    assert data["comparison"]
    assert [row[0] for row in data["rows"]] == ["resd", "sdpo"]
    assert [run["page"] for run in data["runs"]] == [
        f"{method}-s{seed}/report.html" for method in ("resd", "sdpo") for seed in (0, 1)
    ]
    for run in data["runs"]:
        assert unpacked((output / run["page"]).read_text())["complete"]
    (chart, _) = data["curves"]
    assert [(line["name"], line["faint"]) for line in chart["lines"][:3]] == [
        ("resd", False),
        ("resd", True),
        ("resd", True),
    ]
    # A run's page that is newer than the run is left as it is.
    page = output / "resd-s0" / "report.html"
    page.write_text("mine")
    os.utime(page, (2e9, 2e9))
    write_page(output, output / "report.html")
    assert page.read_text() == "mine"


def test_a_comparison_writes_its_page_if_it_is_asked_to(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def compare(*arguments: Any, **more: Any) -> int:
        return compared.go(tmp_path / "out", compared.Fake(), seeds="0")[0]

    monkeypatch.setattr("resd.compare.command.compare", compare)
    words = ["compare", "--output", str(tmp_path / "out"), "--methods", "resd,sdpo"]
    assert main(words) == 0
    assert not (tmp_path / "out" / "report.html").exists()
    assert main([*words, "--report"]) == 0
    assert "written to" in capsys.readouterr().out
    assert unpacked((tmp_path / "out" / "report.html").read_text())["comparison"]


def test_seeds_are_compared_in_pairs() -> None:
    def variant(label: str, finals: dict[int, float]) -> dict[str, Any]:
        runs = [
            {"seed": s, "curve": [{"mean": 9.0, "best": 9.0}, {"mean": v, "best": 0.5}]}
            for s, v in finals.items()
        ]
        return {"label": label, "runs": runs}

    first = variant("a", {0: 0.1, 1: 0.2, 2: 0.3})
    mean, best = pairs([first, variant("b", {1: 0.5, 2: 0.4, 7: 0.9})])
    assert (mean["name"], mean["seeds"]) == ("b minus a", [1, 2])
    assert mean["differences"] == pytest.approx([0.3, 0.1])
    assert mean["mean"] == pytest.approx(0.2)
    assert mean["sign"] == 0.5
    assert (best["differences"], best["sign"]) == ([0.0, 0.0], None)
    assert pairs([first]) == []


@pytest.mark.parametrize(
    ("differences", "p"),
    [([1] * 5, 2 / 32), ([1] * 9 + [-1], 22 / 1024), ([1, -1], 1.0), ([0.0], None), ([], None)],
)
def test_the_sign_test_is_exact(differences: list[float], p: float | None) -> None:
    assert sign_test(differences) == (None if p is None else pytest.approx(p))


def test_results_that_make_no_sense_are_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "results.json").write_text('{"variants": [{}]}')
    assert main(["report", str(tmp_path)]) == 2
    assert "results.json cannot be read" in capsys.readouterr().err
    with pytest.raises(UserError):
        write_page(tmp_path, tmp_path / "page.html")
