"""Comparing methods and seeds: what is run, what is reused, the table and the picture."""

import io
import json
import os
import re
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import style
from matplotlib.image import imread
from rich.console import Console

from resd.cli.main import _assignment, _split
from resd.compare.command import Variant, compare, parse_seeds, parse_variants
from resd.compare.plan import State, make_runs, train_command
from resd.config import load_config
from resd.errors import UserError
from resd.report.labels import spread
from resd.report.plot import _STYLE, draw, save_pictures
from resd.report.results import newest, read_result, summarise
from resd.report.table import make_rows, markdown_table, rich_table, title
from resd.runs.directory import config_text

# What stands in for `resd train`: it writes a finished run, or fails as it is told.
CHILD = """
import json, os, pathlib, signal, sys, time
job = json.loads(sys.argv[1])
path = pathlib.Path(job["path"])
path.mkdir(parents=True, exist_ok=True)
path.joinpath("began").write_text(str(time.time()))
path.joinpath("config.toml").write_text(job["config"])
path.joinpath("threads").write_text(os.environ.get("OMP_NUM_THREADS", "unset"))
path.joinpath("pid.tmp").write_text(str(os.getpid()))
path.joinpath("pid.tmp").rename(path / "pid")
time.sleep(job["sleep"])
limit = time.time() + 60
while len(list(path.parent.glob("*/began"))) < job["together"]:
    if time.time() > limit:
        sys.exit("alone")
    time.sleep(0.01)
print("on standard output")
if job["how"] == "fails":
    sys.exit("a warning\\nresd: the disk is full | `rm` it\\n")
if job["how"] == "is killed":
    os.kill(os.getpid(), signal.SIGKILL)
if job["how"] == "ends early":
    sys.exit(0)
path.joinpath("metrics.jsonl").write_text(job["metrics"])
path.joinpath("done.json").write_text(job["done"])
path.joinpath("ended").write_text(str(time.time()))
"""


def metrics(means, per_step=16, precision=None, entries=1):
    """Rows of a run that is evaluated at steps 0, 1, ..., each step of half a second."""
    rows = []
    for step, mean in enumerate(means):
        rollouts = step * per_step
        if step:
            row = {"step": step, "rollouts": rollouts, "time/step_s": 0.5}
            if precision is not None:
                row |= {"playbook/precision": precision, "playbook/recall": 0.25}
                row["playbook/entries"] = entries
            rows.append(row)
        best = min(1.0, mean + 0.1)
        values = {"mean@4": mean, "best@4": best, "case_mean@4": mean, "case_best@4": best}
        names = {f"eval/{name}": value for name, value in values.items()}
        rows.append({"step": step, "rollouts": rollouts, **names})
    return "".join(json.dumps(row) + "\n" for row in rows)


def done(means, per_step=16):
    return json.dumps({"steps": len(means) - 1, "rollouts": per_step * (len(means) - 1)})


class Fake:
    """A command that makes finished runs, and remembers what it was asked for."""

    def __init__(self, how=None, means=(0.0, 0.25, 0.75), sleep=0.0, together=0):
        self.how, self.means, self.sleep, self.together = how or {}, means, sleep, together
        self.calls = []

    def __call__(self, run, resume):
        self.calls.append((run.name, resume))
        per_step = 16 * run.config.method.rollouts
        job = {
            "path": str(run.path),
            "config": config_text(run.config),
            "how": self.how.get(run.name, "works"),
            "sleep": self.sleep,
            "together": self.together,
            "metrics": metrics(self.means, per_step),
            "done": done(self.means, per_step),
        }
        return [sys.executable, "-S", "-E", "-c", CHILD, json.dumps(job)]

    @property
    def names(self):
        return sorted(name for name, _ in self.calls)


def go(output, fake, methods="resd,sdpo", seeds="0,1", shared=(), jobs=2, **more):
    screen = io.StringIO()
    code = compare(
        more.pop("file", None),
        parse_variants(methods, more.pop("variants", []), _assignment),
        parse_seeds(seeds),
        list(shared),
        jobs,
        output,
        command=fake,
        console=Console(file=screen, width=100, **more),
    )
    return code, screen.getvalue()


def make_finished(output, curves, precisions=None, per_step=None):
    """Finished runs of variants by label, a curve a seed; returns the summaries."""
    variants = [Variant(label, (("method.name", "resd"),)) for label in curves]
    count = max(map(len, curves.values()))
    runs = [
        run
        for run in make_runs(None, variants, range(count), [], output)
        if run.seed < len(curves[run.variant.label])
    ]
    for run in runs:
        label, means = run.variant.label, curves[run.variant.label][run.seed]
        size = (per_step or {}).get(label, 16)
        run.path.mkdir(parents=True)
        rows = metrics(means, size, (precisions or {}).get(label))
        (run.path / "metrics.jsonl").write_text(rows)
        (run.path / "done.json").write_text(done(means, size))
    return summarise(runs, {})


# -- words of the command line -------------------------------------------------------------------


def test_seeds_are_numbers_and_ranges():
    assert parse_seeds("0,1,4-6") == [0, 1, 4, 5, 6]
    assert parse_seeds(" 7 , 2 - 3 ,") == [7, 2, 3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is none"),
        ("1,x", "'x' is neither"),
        ("-1", "'-1' is neither"),
        ("1.5", "'1.5' is neither"),
        ("5-3", "5-3 ends before it begins"),
        ("0-4,3", "3 stands twice"),
        ("0-99999999999", "more than 1000"),
    ],
)
def test_bad_seeds_are_named(text, message):
    with pytest.raises(UserError, match=message):
        parse_seeds(text)


def test_methods_and_variants_become_curves():
    text = "no  reflection : method.use_reflection=false train.lr=0.002 task='a b.py:C'"
    variants = parse_variants("resd, grpo", [text, "peers: method.name=sdpo"], _assignment)
    assert variants == [
        Variant("resd", (("method.name", "resd"),)),
        Variant("grpo", (("method.name", "grpo"),)),
        Variant(
            "no reflection",
            (
                ("method.name", "resd"),
                ("method.use_reflection", False),
                ("train.lr", 0.002),
                ("task", "a b.py:C"),
            ),
        ),
        Variant("peers", (("method.name", "sdpo"),)),
    ]
    assert variants[2].slug == "no-reflection"


@pytest.mark.parametrize(
    ("methods", "variants", "message"),
    [
        ("resd,dpo", [], "unknown method 'dpo'; known: resd, sdpo, sdpo_ss, grpo"),
        ("resd,resd", [], "'resd' stands twice"),
        ("resd", ["resd: train.lr=1"], "'resd' stands twice"),
        ("", ["a b: train.lr=1", "A-b: train.lr=2"], "'a b' and 'A-b' would share a directory"),
        ("", [], "nothing to compare"),
        ("", ["train.lr=1"], "expected 'LABEL: KEY=VALUE ...'"),
        ("", [": train.lr=1"], "expected 'LABEL: KEY=VALUE ...'"),
        ("", ["x: lr"], "variant 'x': expected KEY=VALUE, found 'lr'"),
        ("", ["x: a='b"], "variant 'x': no closing quotation"),
        ("", ["!?: train.lr=1"], "needs a letter"),
        ("", ["x" * 200 + ": train.lr=1"], "too long"),
    ],
)
def test_bad_variants_are_named(methods, variants, message):
    with pytest.raises(UserError, match=re.escape(message)):
        parse_variants(methods, variants, _assignment)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_file", [False, True])
def test_a_child_reads_the_very_settings_that_were_checked(tmp_path, with_file):
    file = tmp_path / "shared.toml"
    file.write_text('preset = "lab"\n[evaluation]\nmax_examples = 5\n')
    values = [
        ("evaluation.max-examples", None),
        ("method.top_k", None),
        ("method.success_weights", [1.0, 2.5]),
        ("task_args", {"name": "1e3", "word": "true", "text": "a 'b' --c=\"d\" é", "on": True}),
    ]
    variants = parse_variants("sdpo", [], _assignment)
    given_file = file if with_file else None
    (run,) = make_runs(given_file, variants, [3], values, tmp_path / "out")
    command = train_command(run, False)
    assert command[:4] == [sys.executable, "-m", "resd.cli", "train"]
    read_file, resume, overrides = _split(command[4:])
    assert (read_file, resume) == (given_file, None)
    assert load_config(read_file, overrides) == run.config
    # What the settings say, not only that both readings agree.
    assert (run.config.seed, run.config.method.name) == (3, "sdpo")
    assert run.config.evaluation.max_examples is None
    assert run.config.task_args == values[3][1]
    assert train_command(run, True)[4:] == ["--resume", str(run.path)]


def test_a_variant_wins_over_shared_settings_which_win_over_the_file(tmp_path):
    file = tmp_path / "shared.toml"
    file.write_text('preset = "lab"\n[train]\nlr = 0.1\nsteps = 3\nbatch_size = 5\n')
    variants = parse_variants("resd", ["v: train.lr=0.3"], _assignment)
    shared = [("train.lr", 0.2), ("train.steps", 4)]
    resd, v = (run.config.train for run in make_runs(file, variants, [0], shared, tmp_path / "o"))
    assert (resd.lr, resd.steps, resd.batch_size) == (0.2, 4, 5)
    assert (v.lr, v.steps, v.batch_size) == (0.3, 4, 5)


def test_a_table_as_value_is_not_filled_by_the_variants(tmp_path):
    texts = ["a: method.use_trial=false", "b: method.top_k=8"]
    variants = parse_variants("", texts, _assignment)
    a, b = make_runs(None, variants, [0], [("method", {"top_k": 7})], tmp_path)
    assert (a.config.method.top_k, a.config.method.use_trial) == (7, False)
    assert (b.config.method.top_k, b.config.method.use_trial) == (8, True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shared": [("train.lrr", 1)]}, "variant 'resd': unknown key train.lrr"),
        ({"variants": ["v: train.lr=-1"]}, "variant 'v': train.lr"),
        ({"variants": ["v: method.name=dpo"]}, "variant 'v': unknown method 'dpo'"),
        ({"shared": [("seed", 1)]}, "variant 'resd': seed is set by --seeds"),
        ({"shared": [("output", "x")]}, "variant 'resd': output is set by --output"),
        (
            {"shared": [("method.use_trial", False)]} | {"methods": "resd,grpo"},
            "variant 'grpo': unknown key method.use_trial",
        ),
        ({"jobs": 0}, "jobs: at least 1"),
        ({"file": Path("nowhere.toml")}, "config file nowhere.toml does not exist"),
        ({"seeds": "0", "file": Path("/")}, "config file / cannot be read"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, change, message):
    fake = Fake()
    with pytest.raises(UserError) as caught:
        go(tmp_path / "out", fake, **change)
    assert str(caught.value).startswith(message)
    assert fake.calls == []
    assert not (tmp_path / "out").exists()


def test_an_output_that_holds_something_else_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        go(tmp_path / "file", Fake())
    mine = tmp_path / "out" / "sdpo-s1"
    mine.mkdir(parents=True)
    (mine / "thesis.txt").write_text("years of work")
    fake = Fake()
    with pytest.raises(UserError, match=r"sdpo-s1 is in the way"):
        go(tmp_path / "out", fake)
    assert fake.calls == [] and (mine / "thesis.txt").read_text() == "years of work"


# -- running -------------------------------------------------------------------------------------


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
    go(tmp_path, Fake(), shared=[("train.steps", 2), ("method.top_k", None)], methods="resd")
    if not finished:
        (tmp_path / "resd-s1" / "done.json").unlink()
        (tmp_path / "resd-s0" / "done.json").unlink()
    fake = Fake()
    with pytest.raises(UserError, match=r"resd-s0 was made with train.steps = 2, and now it is 3"):
        go(tmp_path, fake, shared=[("train.steps", 3), ("method.top_k", None)], methods="resd")
    with pytest.raises(UserError, match=r"method.top_k = none, and now it is 100"):
        go(tmp_path, fake, shared=[("train.steps", 2)], methods="resd")
    with pytest.raises(UserError, match=r'method.name = "resd", and now it is "sdpo_ss"'):
        # Its rollouts differ too, and come first.
        text = "resd: method.name=sdpo_ss method.rollouts=2"
        go(tmp_path, fake, methods="", variants=[text])
    assert fake.calls == []
    # Where it lies is no setting.
    tmp_path.rename(moved := tmp_path.with_name(tmp_path.name + "-moved"))
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


# -- results and table ---------------------------------------------------------------------------


def test_a_run_is_read(tmp_path):
    make_finished(tmp_path, {"resd": [(0.0, 0.25, 0.75)]}, {"resd": 0.8})
    with (tmp_path / "resd-s0" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rollouts": 48, "eval/mean@4": 0.9')
    result = read_result(tmp_path / "resd-s0", 0)
    assert [(p.step, p.rollouts, p.mean) for p in result.curve] == [
        (0, 0, 0.0),
        (1, 16, 0.25),
        (2, 32, 0.75),
    ]
    assert (result.samples, result.rollouts, result.seconds) == (4, 32, 1.0)
    assert (result.precision, result.recall) == (0.8, 0.25)


def test_an_empty_playbook_has_no_precision(tmp_path):
    make_finished(tmp_path, {"resd": [(0.0, 0.5)]})
    (tmp_path / "resd-s0" / "metrics.jsonl").write_text(metrics((0.0, 0.5), 16, 1.0, entries=0))
    assert read_result(tmp_path / "resd-s0", 0).precision is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("done.json", None, "is not complete"),
        ("done.json", "[]", "cannot be read"),
        ("done.json", "{", "cannot be read"),
        ("metrics.jsonl", '{"step": 0, "rollouts": 0, "eval/mean@4": NaN}', "no evaluation"),
        ("metrics.jsonl", None, "no evaluation"),
    ],
)
def test_a_run_that_makes_no_sense_is_refused(tmp_path, name, content, message):
    make_finished(tmp_path, {"resd": [(0.0, 0.5)]})
    file = tmp_path / "resd-s0" / name
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(UserError, match=message):
        read_result(tmp_path / "resd-s0", 0)


def test_the_table_holds_medians_extremes_and_every_seed(tmp_path):
    curves = {
        "resd": [(0.0, 0.6, 0.9), (0.0, 0.5, 0.7), (0.1, 0.3, 0.8)],
        "a|b": [(0.0, 0.1, 0.2), (0.0, 0.1, 0.4)],
    }
    summaries = make_finished(tmp_path, curves, {"resd": 0.75})
    names, rows = make_rows(summaries)
    resd, other = (dict(zip(names, row, strict=True)) for row in rows)
    assert resd == {
        "variant": "resd",
        "seeds": "3",
        "rollouts": "32",
        "mean@4": "0.800",
        "min": "0.700",
        "max": "0.900",
        "best@4": "0.900",
        "each seed": "0.900 0.700 0.800",
        # The median reaches 0.5 at step 1, after 16 rollouts.
        "rollouts to 0.5": "16",
        "playbook precision": "0.750",
        "s / run": "1",
    }
    assert (other["mean@4"], other["rollouts to 0.5"]) == ("0.300", "-")
    assert other["playbook precision"] == "-"
    assert title(summaries) == "task lab, model lab, 2 to 3 seeds"
    lines = markdown_table(summaries).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines) == 4 and "a\\|b" in lines[3]


def test_a_column_that_nobody_fills_is_left_out(tmp_path):
    names, _ = make_rows(make_finished(tmp_path, {"sdpo": [(0.0, 0.5)]}))
    assert "playbook precision" not in names


def test_the_median_is_taken_where_all_seeds_were_evaluated(tmp_path):
    (summary,) = make_finished(tmp_path, {"resd": [(0.0, 0.5, 0.9), (0.2, 0.7)]})
    assert [(p.step, p.mean) for p in summary.median_curve] == [(0, 0.1), (1, 0.6)]
    assert summary.finals == [0.9, 0.7]


@pytest.mark.parametrize("width", [50, 80, 200])
def test_a_narrow_terminal_loses_columns_but_no_digit(tmp_path, width):
    summaries = make_finished(tmp_path, {"resd": [(0.0, 0.625)] * 5}, {"resd": 0.875})
    console = Console(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    console.print(rich_table(summaries, console))
    text = console.file.getvalue()
    assert "resd" in text and "0.625" in text and "…" not in text
    assert ("0.625 0.625 0.625 0.625 0.625" in text) == (width == 200)


# -- picture -------------------------------------------------------------------------------------


def four_variants(output, steps=6):
    curves = {
        label: [
            tuple(min(1.0, speed * step * (1 + seed / 10)) for step in range(steps))
            for seed in range(5)
        ]
        for label, speed in {"resd": 0.19, "sdpo": 0.1, "sdpo_ss": 0.11, "grpo": 0.05}.items()
    }
    return make_finished(output, curves, per_step={"grpo": 128})


def test_the_pictures_show_something_and_are_the_same_each_time(tmp_path):
    summaries = four_variants(tmp_path / "runs")
    for name in ("a", "b"):
        save_pictures(summaries, tmp_path / f"{name}.png", tmp_path / f"{name}.svg")
    for kind in ("png", "svg"):
        assert (tmp_path / f"a.{kind}").read_bytes() == (tmp_path / f"b.{kind}").read_bytes()
    pixels = imread(tmp_path / "a.png")[..., :3]
    assert pixels.shape == (900, 1600, 3)
    for colour in ("#0072B2", "#D55E00", "#009E73", "#CC79A7"):
        rgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        assert (abs(pixels - rgb).max(axis=-1) < 0.02).sum() > 500, colour
    svg = (tmp_path / "a.svg").read_text()
    assert "<dc:date>" not in svg and svg.count("<path") > 50
    other = make_finished(tmp_path / "other", {"resd": [(0.0, 0.5)] * 5})
    save_pictures(other, tmp_path / "b.png", tmp_path / "b.svg")
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


def drawn(summaries):
    with style.context(["default", _STYLE]):
        figure = draw(summaries)
        figure.canvas.draw()
    return figure


@pytest.mark.parametrize(("factor", "scale"), [(4, "linear"), (5, "symlog")])
def test_the_scale_is_logarithmic_if_budgets_differ_more_than_fourfold(tmp_path, factor, scale):
    curves = {"resd": [(0.0, 0.5, 0.9)] * 2, "grpo": [(0.0, 0.2, 0.3)] * 2}
    figure = drawn(make_finished(tmp_path, curves, per_step={"resd": 16, "grpo": 16 * factor}))
    (axes,) = figure.axes
    assert axes.get_xscale() == scale
    assert axes.get_xlim() == (0, 32 * factor)


def test_median_seeds_and_band_are_drawn(tmp_path):
    means = [(0.0, 0.2), (0.0, 0.3), (0.0, 0.4), (0.0, 0.9), (0.0, 1.0)]
    figure = drawn(make_finished(tmp_path, {"resd": means}))
    (axes,) = figure.axes
    thin = [line for line in axes.lines if line.get_linewidth() < 1]
    bold = [line for line in axes.lines if line.get_linewidth() > 2]
    assert [tuple(line.get_ydata()) for line in thin] == means
    assert [tuple(line.get_ydata()) for line in bold] == [(0.0, 0.4)]
    (band,) = axes.collections
    edges = {round(float(y), 3) for x, y in band.get_paths()[0].vertices if x == 16}
    assert edges == {0.3, 0.9}
    assert "Validation accuracy: task lab, model lab, 5 seeds" in [
        t.get_text() for t in figure.texts
    ]


@pytest.mark.parametrize("number", [4, 9, 24])
def test_names_cover_neither_each_other_nor_the_curves(tmp_path, number):
    curves = {
        f"{'a name of $_^$ ' * (i % 5)}number {i}": [(0.0, 0.9 + i / 1000)] for i in range(number)
    }
    figure = drawn(make_finished(tmp_path, curves))
    renderer = figure.canvas.get_renderer()
    names = [
        text.get_window_extent(renderer) for text in figure.texts if ": 0.9" in text.get_text()
    ]
    assert len(names) == number
    names.sort(key=lambda box: box.y0)
    for below, above in pairwise(names):
        assert below.y1 <= above.y0 + 1
    axes = figure.axes[0].get_window_extent(renderer)
    for box in names:
        assert box.x0 > axes.x1 and box.x1 <= figure.bbox.width
        assert box.y0 >= 0 and box.y1 <= figure.bbox.height


sizes = st.lists(st.tuples(st.floats(0.0, 1.0), st.floats(0.01, 0.2)), min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(sizes)
def test_labels_are_moved_apart_and_no_more_than_needed(labels):
    wanted, heights = [w for w, _ in labels], [h for _, h in labels]
    low, high = -0.1, max(1.1, -0.1 + sum(heights))
    places = spread(wanted, heights, low, high)
    boxes = sorted(
        (place - height / 2, place + height / 2)
        for place, height in zip(places, heights, strict=True)
    )
    for (_, top), (bottom, _) in pairwise(boxes):
        assert top <= bottom + 1e-9
    assert boxes[0][0] >= low - 1e-9 and boxes[-1][1] <= high + 1e-9
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    for i, j in pairwise(order):
        assert wanted[i] == wanted[j] or places[i] < places[j]
    apart = spread([0.1, 0.9], [0.1, 0.1], 0.0, 1.0)
    assert apart == pytest.approx([0.1, 0.9])
    assert spread([0.5, 0.5], [0.1, 0.3], 0.0, 1.0) == pytest.approx([0.6, 0.4])
