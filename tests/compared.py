"""Comparisons of runs that only look like runs."""

import io
import json
import sys

from rich.console import Console

from resd.cli.main import _assignment
from resd.compare.command import Variant, compare, parse_seeds, parse_variants
from resd.compare.plan import make_runs
from resd.report.results import summarise
from resd.runs.config_file import config_text

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
            row |= {"rollout/passed": mean, "tokens/rollout": 7 * per_step}
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
