"""Comparing methods and seeds: what is run, what is reused, what is seen."""

import io
import json
import os
import re
import time

import pytest
import tiny
from compared import Fake, go, metrics
from rich.console import Console

from resd.cli.main import _assignment
from resd.compare.command import compare, parse_variants
from resd.compare.plan import State, make_runs
from resd.errors import UserError
from resd.report.results import newest
from resd.runs.config_file import config_text


def test_every_variant_and_seed_is_run_and_everything_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fake, output = Fake(), tmp_path / "out"
    code, screen = go(output, fake, methods="resd,grpo")
    assert code == 0
    assert fake.calls == [(name, False) for name in ("resd-s0", "grpo-s0", "resd-s1", "grpo-s1")]
    lines = [line for line in screen.splitlines() if line.startswith("[")]
    assert [line.split("]")[0] for line in lines] == ["[1/4", "[2/4", "[3/4", "[4/4"]
    assert sum("mean@4 0.750  best@4 0.850  32 rollouts" in line for line in lines) == 2
    assert (output / "resd-s0" / "threads").read_text() == "1"
    assert (output / "logs" / "resd-s0.out").read_text() == "on standard output\n"
    results = json.loads((output / "results.json").read_text())
    resd, grpo = results["variants"]
    assert (resd["label"], resd["settings"]) == ("resd", {"method.name": "resd"})
    assert (grpo["label"], grpo["settings"]) == ("grpo", {"method.name": "grpo"})
    assert [run["seed"] for run in grpo["runs"]] == [0, 1]
    assert [p["rollouts"] for p in grpo["runs"][1]["curve"]] == [0, 128, 256]
    assert resd["config"]["method"]["name"] == "resd"
    assert resd["summary"]["mean"] == 0.75
    assert (output / "table.md").read_text().startswith("**task lab, model lab, 2 seeds**")
    for name in ("compare.png", "compare.svg"):
        assert (output / name).stat().st_size > 10_000
    assert not list(output.glob(".*"))


def test_one_job_leaves_the_threads_alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    go(tmp_path, Fake(), methods="resd", seeds="0", jobs=1)
    assert (tmp_path / "resd-s0" / "threads").read_text() == "unset"
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    go(tmp_path, Fake(), methods="resd", seeds="1", jobs=2)
    assert (tmp_path / "resd-s1" / "threads").read_text() == "3"


@pytest.mark.parametrize("jobs", [1, 3])
def test_as_many_runs_at_a_time_as_jobs(tmp_path, jobs):
    fake = Fake(together=jobs, sleep=0.1)  # each waits until so many have begun
    assert go(tmp_path, fake, methods="resd", seeds="0-3", jobs=jobs)[0] == 0
    spans = [
        tuple(float((tmp_path / f"resd-s{seed}" / name).read_text()) for name in ("began", "ended"))
        for seed in range(4)
    ]
    at_once = max(sum(b <= moment < e for b, e in spans) for moment, _ in spans)
    assert at_once == jobs


def test_finished_runs_are_reused(tmp_path):
    go(tmp_path, Fake())
    again = Fake()
    code, screen = go(tmp_path, again)
    assert (code, again.calls) == (0, [])
    assert screen.count("(finished before)") == 4
    more = Fake(means=(0.0, 0.5))
    go(tmp_path, more, seeds="0-2")
    assert more.names == ["resd-s2", "sdpo-s2"]
    assert "0.750 0.750 0.500" in (tmp_path / "table.md").read_text()


def test_what_broke_off_is_resumed_and_what_never_began_is_begun(tmp_path):
    resd, sdpo = make_runs(None, parse_variants("resd,sdpo", [], _assignment), [0], [], tmp_path)
    resd.path.mkdir()
    (resd.path / "config.toml").write_text(config_text(resd.config))
    sdpo.path.mkdir()
    (sdpo.path / ".lock").write_text("")
    assert (resd.state(), sdpo.state()) == (State.BROKEN_OFF, State.NEW)
    fake = Fake()
    assert go(tmp_path, fake, seeds="0", jobs=1)[0] == 0
    assert fake.calls == [("resd-s0", True), ("sdpo-s0", False)]


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_with_other_settings_is_refused(tmp_path, finished):
    runs = tmp_path / "runs"
    go(runs, Fake(), shared=[("train.steps", 2), ("method.top_k", None)], methods="resd")
    if not finished:
        (runs / "resd-s1" / "done.json").unlink()
        (runs / "resd-s0" / "done.json").unlink()
    fake = Fake()
    with pytest.raises(UserError, match=r"resd-s0 was made with train.steps = 2, and now it is 3"):
        go(runs, fake, shared=[("train.steps", 3), ("method.top_k", None)], methods="resd")
    with pytest.raises(UserError, match=r"method.top_k = none, and now it is 100"):
        go(runs, fake, shared=[("train.steps", 2)], methods="resd")
    with pytest.raises(UserError, match=r'method.name = "resd", and now it is "sdpo_ss"'):
        # Its rollouts differ too, and come first.
        text = "resd: method.name=sdpo_ss method.rollouts=2"
        go(runs, fake, methods="", variants=[text])
    assert fake.calls == []
    # Where it lies is no setting.
    runs.rename(moved := tmp_path / "moved")
    same = [("train.steps", 2), ("method.top_k", None)]
    assert go(moved, Fake(), shared=same, methods="resd")[0] == 0


def test_runs_start_from_a_copy_of_the_file(tmp_path):
    file = tmp_path / "my.toml"
    file.write_text('preset = "lab"\ntrain.steps = 7\n')
    used = []

    class Looking(Fake):
        def __call__(self, run, resume):
            file.write_text("edited = true\n")
            used.append(run.file.read_text())
            return super().__call__(run, resume)

    assert go(tmp_path / "out", Looking(), seeds="0", file=file)[0] == 0
    assert used == ['preset = "lab"\ntrain.steps = 7\n'] * 2


def test_a_failing_run_is_reported_and_the_others_go_on(tmp_path, capsys):
    how = {"resd-s0": "fails", "sdpo-s0": "is killed", "sdpo-s1": "ends early"}
    code, screen = go(tmp_path, Fake(how))
    assert code == 1
    assert "resd-s0  FAILED: the disk is full | `rm` it (see" in screen
    assert "sdpo-s0  FAILED: killed by SIGKILL" in screen
    assert "sdpo-s1  FAILED: ended without a result" in screen
    assert "3 of 4 runs have no result" in capsys.readouterr().err
    table = (tmp_path / "table.md").read_text()
    assert "`no result: resd, seed 0: the disk is full | 'rm' it`" in table
    cells = [[c.strip() for c in row.split("|")[1:-1]] for row in table.splitlines() if "|" in row]
    resd, sdpo = cells[2], cells[3]
    assert resd[:4] == ["resd", "1 of 2", "32", "0.750"]
    assert sdpo[:4] == ["sdpo", "0 of 2", "-", "-"]
    failures = json.loads((tmp_path / "results.json").read_text())["variants"][0]["failures"]
    assert failures == [{"seed": 0, "reason": "the disk is full | `rm` it"}]
    again = Fake()
    assert go(tmp_path, again)[0] == 0
    assert again.names == ["resd-s0", "sdpo-s0", "sdpo-s1"]


def test_without_any_result_there_is_no_picture(tmp_path):
    go(tmp_path, Fake(), methods="resd", seeds="0")
    assert (tmp_path / "compare.png").exists()
    code, _ = go(tmp_path, Fake({"sdpo-s0": "fails"}), methods="sdpo", seeds="0")
    assert code == 1 and not (tmp_path / "compare.png").exists()
    assert "| sdpo    | 0 of 1 |" in (tmp_path / "table.md").read_text()


def test_a_command_that_does_not_exist_is_a_failure(tmp_path):
    code, screen = go(tmp_path, lambda run, resume: ["/no/such/program"], seeds="0")
    assert code == 1 and screen.count("FAILED: cannot be started") == 2


def test_an_interruption_leaves_no_child_behind(tmp_path, capsys):
    class Interrupted(Fake):
        def __call__(self, run, resume):
            if self.calls:
                file = tmp_path / self.calls[0][0] / "pid"
                while not file.exists():
                    time.sleep(0.01)
                raise KeyboardInterrupt
            return super().__call__(run, resume)

    code, _ = go(tmp_path, Interrupted(sleep=60.0))
    assert code == 130
    assert "the same command goes on" in capsys.readouterr().err
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "resd-s0" / "pid").read_text()), 0)
    again = Fake()
    assert go(tmp_path, again)[0] == 0
    assert ("resd-s0", True) in again.calls and len(again.calls) == 4


def test_a_terminal_sees_runs_that_are_going_on(tmp_path):
    fake = Fake({"sdpo-s0": "fails"})
    code, screen = go(tmp_path, fake, seeds="0", force_terminal=True)
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)
    assert code == 1
    assert "0/2 runs" in plain and re.search(r"^resd-s0 +step 0/40", plain, re.M)
    assert "resd-s0  mean@4 0.750" in plain and "sdpo-s0  FAILED: the disk is full" in plain
    assert "[bold]" not in plain and "[dim]" not in plain
    assert "──────" in plain


def test_the_newest_step_is_read_from_the_end(tmp_path):
    assert newest(tmp_path) == (0, None)
    (tmp_path / "metrics.jsonl").write_text(metrics((0.0, 0.25, 0.75)) + '{"step": 9, "ro')
    assert newest(tmp_path) == (2, 0.75)
    # Less than the last line: nothing whole, and no error.
    assert newest(tmp_path, most=50) == (0, None)


@pytest.mark.slow
def test_real_runs_are_compared_and_a_broken_one_goes_on(tmp_path, tiny_model):
    values = tiny.settings(tiny_model, tmp_path)
    shared = [(key, value) for key, value in values.items() if not key.startswith(("meth", "out"))]

    def once(jobs):
        screen = Console(file=io.StringIO(), width=100)
        variants = parse_variants(
            "sdpo", ["three: method.name=grpo method.rollouts=3"], _assignment
        )
        return compare(None, variants, [0], shared, jobs, tmp_path / "out", console=screen)

    assert once(jobs=2) == 0
    first = json.loads((tmp_path / "out" / "results.json").read_text())
    sdpo, three = first["variants"]
    assert [point["rollouts"] for point in sdpo["runs"][0]["curve"]] == [0, 8, 16]
    assert [point["rollouts"] for point in three["runs"][0]["curve"]] == [0, 24, 48]
    (tmp_path / "out" / "three-s0" / "done.json").unlink()
    assert once(jobs=1) == 0
    again = json.loads((tmp_path / "out" / "results.json").read_text())
    assert again["variants"][1]["runs"][0]["curve"] == three["runs"][0]["curve"]
