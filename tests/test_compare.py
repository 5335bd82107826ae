"""Comparing methods and seeds: what the words and the settings say."""

import re
import sys
from pathlib import Path

import pytest
from compared import Fake, go

from resd.cli.main import _assignment, _split
from resd.compare.command import Variant, parse_seeds, parse_variants
from resd.compare.plan import make_runs, train_command
from resd.config import load_config
from resd.errors import UserError

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
        ("resd,dpo", [], "unknown method 'dpo'; did you mean sdpo"),
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
    words = _split(command[4:])
    assert (words.file, words.resume, words.accept) == (given_file, None, [])
    assert load_config(words.file, words.overrides) == run.config
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
