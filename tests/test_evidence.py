"""From a registered claim to its verdict, with runs that only look like runs."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from compared import Fake
from rich.console import Console
from test_evidence_registry import TEXT

from resd.errors import UserError
from resd.evidence import made
from resd.evidence.command import evidence
from resd.evidence.measure import Measured, measure
from resd.evidence.plan import code_version
from resd.evidence.registry import At, parse_experiment


class Runs(Fake):
    """Runs whose end depends on their method and dialect."""

    ends = {  # noqa: RUF012
        "resd": {10: 0.5, 11: 0.75, 12: 0.875},
        "sdpo": {10: 0.25, 11: 0.25, 12: 0.25},
    }

    def __call__(self, run, resume):
        ends = self.ends[run.config.method.name]
        self.means = (0.0, 0.125, ends[run.config.task_args["dialect"] % 5 % 3 + 10])
        return super().__call__(run, resume)


def experiment(text=TEXT, runs=6, dialects="10-12", **replaced):
    for old, new in replaced.items():
        text = text.replace(old, new)
    text = text.replace("runs = 4", f"runs = {runs}").replace('"10-11"', f'"{dialects}"')
    return parse_experiment("x", text)


def go(output, runs, only=(), experiments=None, **more):
    screen = io.StringIO()
    code = evidence(
        list(only),
        output,
        experiments=experiments or {"x": experiment()},
        run_command=runs,
        jobs=2,
        console=Console(file=screen, width=200),
        **more,
    )
    return code, screen.getvalue()


def read(output):
    return json.loads((output / "evidence.json").read_text())["experiments"]["x"]


def test_a_claim_gets_its_verdict(tmp_path):
    runs = Runs()
    code, screen = go(tmp_path, runs)
    assert code == 0 and len(runs.calls) == 6
    (claim,) = read(tmp_path)["claims"]
    assert claim["verdict"] == "reproduced"
    assert claim["by_dialect"] == {"10": 0.25, "11": 0.5, "12": 0.625}
    assert claim["effect"] == 0.5 and claim["interval"] == [0.25, 0.625]
    assert "reproduced" in screen
    text = (tmp_path / "evidence.md").read_text()
    assert "| A ends higher than B | ours | reproduced | 0.500 [0.250, 0.625] |" in text
    assert "resd evidence --only x" in text
    assert (tmp_path / "figures/x.png").stat().st_size > 5_000


def test_a_claim_may_turn_out_wrong(tmp_path):
    turned = TEXT.replace('of = "A"\nagainst = "B"', 'of = "B"\nagainst = "A"')
    go(tmp_path, Runs(), experiments={"x": experiment(turned)})
    assert read(tmp_path)["claims"][0]["verdict"] == "refuted"
    between = TEXT.replace("above = 0", "above = 0.5")
    go(tmp_path, Runs(), experiments={"x": experiment(between)})
    assert read(tmp_path)["claims"][0]["verdict"] == "undecided"


def test_seeds_of_a_dialect_are_averaged(tmp_path):
    class Seeds(Runs):
        def __call__(self, run, resume):
            self.ends = {
                "resd": {d: 0.5 * run.seed for d in (10, 11, 12)},
                "sdpo": Runs.ends["sdpo"],
            }
            return super().__call__(run, resume)

    two = TEXT.replace('seeds = "0"', 'seeds = "0-1"')
    go(tmp_path, Seeds(), experiments={"x": experiment(two, 12)})
    assert read(tmp_path)["claims"][0]["by_dialect"] == {"10": 0.0, "11": 0.0, "12": 0.0}


def test_finished_runs_are_made_once_and_an_edited_variant_anew(tmp_path):
    go(tmp_path, Runs())
    again = Runs()
    go(tmp_path, again)
    assert again.calls == []
    edited = TEXT.replace(
        'set.method.name = "sdpo"', 'set = { method.name = "sdpo", train.lr = 0.5 }'
    )
    more = Runs()
    go(tmp_path, more, experiments={"x": experiment(edited)})
    assert len(more.calls) == 3 and all(name.startswith("sdpo") for name in more.names)


def test_experiments_share_their_runs(tmp_path):
    runs = Runs()
    both = {"x": experiment(), "y": experiment(TEXT.replace("A ends", "Again A ends"))}
    go(tmp_path, runs, experiments=both)
    assert len(runs.calls) == 6
    text = (tmp_path / "evidence.md").read_text()
    assert text.count("| reproduced |") == 2
    assert "6 runs," in text


def test_the_report_is_of_all_that_is_there(tmp_path):
    other = TEXT.replace("A ends", "Again A ends")
    other = other.replace("order = 1", "order = 2\nsettings.train.lr = 0.5")
    both = {"x": experiment(), "y": experiment(other)}
    go(tmp_path, Runs(), only=["x"], experiments=both)
    assert "Again A ends" not in (tmp_path / "evidence.md").read_text()
    _, screen = go(tmp_path, Runs(), only=["y"], experiments=both)
    text = (tmp_path / "evidence.md").read_text()
    assert "| A ends higher" in text and "| Again A ends higher" in text
    assert "x: A ends" not in screen


def test_models_are_removed_and_what_is_read_stays(tmp_path):
    class WithModels(Runs):
        def __call__(self, run, resume):
            for name in ("final", "checkpoints"):
                (run.path / name).mkdir(parents=True)
                (run.path / name / "weights").write_text("w")
            return super().__call__(run, resume)

    go(tmp_path, WithModels())
    runs = list((tmp_path / "runs").iterdir())
    assert len(runs) == 6
    for run in runs:
        assert not (run / "final").exists() and not (run / "checkpoints").exists()
        assert (run / "metrics.jsonl").is_file() and (run / "config.toml").is_file()


def test_runs_of_other_code_are_used_and_named(tmp_path):
    go(tmp_path, Runs())
    assert "another version" not in (tmp_path / "evidence.md").read_text()
    for file in sorted((tmp_path / "made").iterdir())[:2]:
        values = json.loads(file.read_text())
        assert values["code"] == [code_version()] and values["seconds"] > 0
        file.write_text(json.dumps({**values, "code": ["0123456789"]}))
    runs = Runs()
    go(tmp_path, runs)
    assert runs.calls == []
    assert (
        "**2 of these runs were made by another version" in (tmp_path / "evidence.md").read_text()
    )


def test_a_run_that_goes_on_with_other_code_is_of_both(tmp_path):
    class One:
        name, path = "run", tmp_path

    command = made.Noting(lambda run, resume: [], tmp_path, "old")
    command(One, False)
    command.finished(One)
    made.Noting(lambda run, resume: [], tmp_path, "new")(One, True)
    assert made.read_made(tmp_path, "run").code == ("old", "new")


def test_while_runs_are_missing_there_is_no_verdict(tmp_path):
    class Broken(Runs):
        def __call__(self, run, resume):
            if run.config.method.name == "sdpo" and run.config.task_args["dialect"] == 12:
                self.how = {run.name: "fails"}
            return super().__call__(run, resume)

    code, screen = go(tmp_path, Broken())
    assert code == 1 and "has no result: the disk is full | `rm` it" in screen
    claim = read(tmp_path)["claims"][0]
    assert claim["verdict"] == "unfinished" and claim["by_dialect"].keys() == {"10", "11"}
    assert "5 of 6" in (tmp_path / "evidence.md").read_text()
    code, _ = go(tmp_path, Runs())  # it is tried again
    assert code == 0 and read(tmp_path)["claims"][0]["verdict"] == "reproduced"


def test_quick_decides_nothing(tmp_path):
    every = {
        "x": experiment(),
        "y": experiment(TEXT.replace("order = 1", "order = 2\nquick = true")),
    }
    runs = Runs()
    _, screen = go(tmp_path, runs, experiments=every, quick=True)
    assert len(runs.calls) == 6 and "y: A ends higher" in screen and "x: A ends" not in screen
    found = json.loads((tmp_path / "evidence.json").read_text())
    assert found["quick"] and found["experiments"]["y"]["claims"][0]["verdict"] == "quick"
    text = (tmp_path / "evidence.md").read_text()
    assert "| quick |" in text and "reproduced |" not in text and "say nothing" in text


def test_the_list_runs_nothing(tmp_path):
    go(tmp_path, Runs(), only=["x"])
    runs = Runs()
    both = {"x": experiment(), "y": experiment(TEXT.replace("order = 1", "order = 2"))}
    code, screen = go(tmp_path, runs, experiments=both, listing=True)
    assert code == 0 and runs.calls == []
    rows = {line.split()[0]: line.split()[1:4] for line in screen.splitlines() if "ours" in line}
    assert rows == {"x": ["6", "6", "6"], "y": ["6", "0", "0"]}
    assert not (tmp_path / "y").exists()


def test_what_is_out_of_reach_is_a_row_with_its_reason(tmp_path):
    text = 'title = "Figure 9"\nsource = "Fig. 9"\norder = 1\nruns = 0\nout_of_reach = "too large"'
    code, screen = go(tmp_path, Runs(), experiments={"z": parse_experiment("z", text)})
    assert code == 0 and "out of reach" in screen
    assert (
        "| Figure 9: too large | Fig. 9 | out of reach |" in (tmp_path / "evidence.md").read_text()
    )


def test_no_jobs_and_a_file_in_the_way_are_refused(tmp_path):
    with pytest.raises(UserError, match="at least 1 run at a time"):
        evidence([], tmp_path, jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="output"):
        go(tmp_path / "file", Runs())


def test_ctrl_c_leaves_what_is_done(tmp_path):
    """Stopped while the third run sleeps: two are reported, and the same call goes on."""
    program = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_evidence import Runs, evidence, experiment
class Slow(Runs):
    def __call__(self, run, resume):
        self.sleep = 0.0 if len(self.calls) < 2 else 60.0
        return super().__call__(run, resume)
sys.exit(evidence([], Path({str(tmp_path)!r}), experiments={{"x": experiment()}},
    run_command=Slow(), jobs=1))
"""
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    limit = time.monotonic() + 60
    while len(list(tmp_path.glob("runs/*/pid"))) < 3 and time.monotonic() < limit:
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait(120) == 130
    assert read(tmp_path)["runs"] == 2
    assert read(tmp_path)["claims"][0]["verdict"] == "unfinished"
    sleeper = [p for p in tmp_path.glob("runs/*/pid") if not (p.parent / "done.json").exists()]
    with pytest.raises(ProcessLookupError):
        os.kill(int(sleeper[0].read_text()), 0)
    runs = Runs()
    code, _ = go(tmp_path, runs)
    assert code == 0 and len(runs.calls) == 4
    assert sorted(resume for _, resume in runs.calls) == [False, False, False, True]


# -- what is measured of a run -----------------------------------------------------------------


def write_run(path, rows, anchors=None):
    path.mkdir()
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if anchors is not None:
        (path / "anchors.json").write_text(json.dumps({"answers": anchors}))
    return measure(path)


def row(step, mean=None, **more):
    if mean is not None:
        return {"step": step, "rollouts": 16 * step, "eval/mean@4": mean, **more}
    times = {"time/step_s": 5.0, "time/evaluate_s": 2.0, "time/save_s": 1.0}
    tokens = {"tokens/rollout": 10, "tokens/reflection": 30}
    return {"step": step, "rollouts": 16 * step, "rollout/passed": 0.0, **times, **tokens, **more}


def test_axes_count_tokens_of_every_purpose_and_no_evaluation(tmp_path):
    rows = [row(0, 0.0), row(1), row(2), row(2, 0.5)]
    run = write_run(tmp_path / "run", rows, anchors=[[[1, 2, 3], [4, 5]], [[1], [2]]])
    assert run.curve("tokens", "mean") == [(3.0, 0.0), (83.0, 0.5)]
    assert run.curve("seconds", "mean") == [(0.0, 0.0), (4.0, 0.5)]
    assert run.at("tokens", "last") == 83.0 and run.at("rollouts", "last") == 32.0


def test_a_value_at_each_place_of_a_curve(tmp_path):
    rows = [row(0, 0.0), row(1), row(1, 0.8), row(2), row(2, 0.4)]
    run = write_run(tmp_path / "run", rows)
    assert run.at("mean", "last") == 0.4
    assert run.at("mean", "best") == 0.8
    assert run.at("mean", "mean") == pytest.approx(0.6)  # without the one before the first step
    assert run.at("mean", At(rollouts=24)) == pytest.approx(0.6)  # between two evaluations
    assert run.at("mean", At(step=1)) == 0.8
    assert run.at("mean", At(tokens=10_000)) == 0.4  # after its end
    with pytest.raises(UserError, match="there is no playbook/entries"):
        run.at("playbook/entries", "last")


def test_kept_is_the_least_share_of_a_skill_that_the_base_has(tmp_path):
    first = {"eval/retention/a": 0.8, "eval/retention/b": 1.0, "eval/retention/c": 0.1}
    last = {"eval/retention/a": 0.6, "eval/retention/b": 0.9, "eval/retention/c": 0.0}
    run = write_run(tmp_path / "run", [row(0, 0.0, **first), row(1), row(1, 0.5, **last)])
    assert run.at("kept", "last") == pytest.approx(0.75)
    bare = write_run(tmp_path / "bare", [row(0, 0.0), row(1), row(1, 0.5)])
    with pytest.raises(UserError, match="retention was not measured"):
        bare.at("kept", "last")


def test_a_stream_is_what_its_weakest_house_was_and_is(tmp_path):
    def tasks(**values):
        return {f"eval/tasks/{name}/mean@4": value for name, value in values.items()}

    rows = [
        row(0, 0.0, **tasks(a=0.0)),
        row(1),
        row(1, 0.5, **tasks(a=0.5)),
        row(2, 0.9, **tasks(a=0.9)),  # the end of the first
        row(3, 0.4, **tasks(a=0.7, b=0.1)),
        row(4, 0.6, **tasks(a=0.4, b=0.8)),
    ]
    run = write_run(tmp_path / "run", rows)
    assert run.at("learnt", "last") == 0.8 and run.at("held", "last") == 0.4


def test_shares_of_a_steps_time(tmp_path):
    """Of the mean step, without the first, saving and evaluation."""
    late = {"time/update_s": 1.5, "time/anchors_s": 2.0}
    early = {"time/reflect_s": 2.0, "time/curate_s": 1.0, **late}
    rows = [row(0, 0.0), row(1, **{"time/update_s": 90.0}), row(2, **early), row(3, **late)]
    run = write_run(tmp_path / "run", [*rows, row(3, 1)])
    assert run.phases() == {"reflect": 1.0, "curate": 0.5, "anchors": 2.0, "update": 1.5}
    assert run.at("writing_share", "last") == pytest.approx(0.3)
    assert run.at("anchor_share", "last") == pytest.approx(0.4)


def test_the_loss_on_wrong_words_against_their_share():
    rows = [
        {"word": 0, "wrong": True, "loss": 3.0, "tokens": 1},
        {"word": 1, "wrong": False, "loss": 1.0, "tokens": 3},
    ]
    assert Measured([], [], rows).at("wrong_share", "last") == pytest.approx(0.75 - 0.25)
