"""The registered experiments, and what is refused before anything runs."""

import importlib.util
from pathlib import Path

import pytest

from resd.errors import UserError
from resd.evidence.plan import QUICK_DIALECTS, plan
from resd.evidence.registry import chosen, load_experiments, parse_experiment
from resd.tasks.lab.dialect import Dialect

ROOT = Path(__file__).resolve().parents[1]
TEXT = """
title = "A and B"
source = "ours"
order = 1
runs = 4
dialects = "10-11"
seeds = "0"

[[variants]]
label = "A"
set.method.name = "resd"

[[variants]]
label = "B"
set.method.name = "sdpo"

[[claims]]
text = "A ends higher than B"
of = "A"
against = "B"
above = 0

[figure]
panels = [{ x = "rollouts" }]
"""


@pytest.fixture(scope="module")
def experiments():
    return load_experiments()


@pytest.fixture(scope="module")
def plans(experiments):
    output = Path("nowhere")
    return {name: plan(experiments, name, output, False) for name in experiments}


def test_what_ships_is_reported_on_dialects_that_nothing_was_tuned_on(experiments):
    assert len(experiments) >= 15
    for experiment in experiments.values():
        assert set(experiment.dialect_numbers) <= set(range(10, 20))
        assert len(experiment.dialect_numbers) == 10
        assert experiment.registered.tuned
    assert not set(QUICK_DIALECTS) & set(range(10, 20))
    assert list(experiments)[:2] == ["table2", "table5"]


def test_every_registered_run_has_a_configuration(experiments, plans):
    for name, planned in plans.items():
        assert len(planned) == experiments[name].runs
        places = {(item.label, item.dialect, item.seed) for item in planned}
        assert len(places) == len(planned)
        for item in planned:
            assert item.run.config.task_args["dialect"] == item.dialect
            assert item.run.config.seed == item.seed == item.run.seed


def test_a_run_is_shared_where_nothing_differs_and_nowhere_else(plans):
    made_of = {}
    for item in (item for planned in plans.values() for item in planned):
        settings = item.run.config.model_dump_json()
        assert made_of.setdefault(item.run.path, settings) == settings
    assert len(set(made_of.values())) == len(made_of)
    table2 = {item.run.path for item in plans["table2"]}
    assert {item.run.path for item in plans["fig8"] if item.label == "RESD"} <= table2


def test_the_first_seed_of_every_variant_comes_first(experiments, plans):
    seeds = [item.seed for item in plans["table2"]]
    assert seeds == sorted(seeds)
    first = {item.label for item in plans["table2"][:5]}
    assert first == {variant.label for variant in experiments["table2"].variants}


def test_another_base_model_makes_other_runs(tmp_path):
    from resd.evidence import plan as module

    experiments = {"x": parse_experiment("x", TEXT)}
    for part in ("one", "two"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "model.safetensors").write_bytes(part.encode())
    experiments["x"].settings["model"] = {"path": str(tmp_path / "one")}
    module._model_digest.cache_clear()
    before = plan(experiments, "x", tmp_path, False)
    (tmp_path / "one" / "model.safetensors").write_bytes(b"two")
    module._model_digest.cache_clear()
    after = plan(experiments, "x", tmp_path, False)
    assert not {item.run.path for item in before} & {item.run.path for item in after}


def test_a_stream_stays_within_the_reported_dialects(plans):
    for item in plans["streams"]:
        dialects = [part.task_args["dialect"] for part in item.run.config.stream]
        assert dialects[0] == item.dialect
        assert len(set(dialects)) == 5 and set(dialects) <= set(range(10, 20))


def test_the_other_dialects_playbook_is_that_of_another(plans):
    shown = [item for item in plans["table3"] if item.label == "another dialect's playbook"]
    assert len(shown) == 30
    for item in shown:
        facts = set(Dialect.numbered(item.dialect).facts())
        assert len(item.run.config.method.lessons) == 13
        assert len(facts & set(item.run.config.method.lessons)) <= 6


def test_quick_is_short_and_leaves_the_reported_dialects_alone(experiments):
    for name in experiments:
        for item in plan(experiments, name, Path("nowhere"), True):
            assert item.dialect in QUICK_DIALECTS and item.seed == 0
            assert item.run.config.train.steps == 3
            assert item.run.config.evaluation.retention in (0, 4)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("seeds =", "seed =", "unknown key seed; did you mean seeds?"),
        ("above = 0", "abov = 0", "unknown key claims.0.abov; did you mean above?"),
        ("panels =", "panel =", "unknown key figure.panel; did you mean panels?"),
        ('label = "A"', 'lable = "A"', "unknown key variants.0.lable; did you mean label?"),
        ('of = "A"', 'of = "a"', "claim 'A ends higher than B' names variant 'a'"),
        ("runs = 4", "runs = 5", "runs is 5, but variants x dialects x seeds are 4"),
        ("above = 0", "", "give either above or below"),
        ("above = 0", "above = 0\nbelow = 0", "give either above or below"),
        ("above = 0", 'above = 0\nmetric = "kep"', "no metric 'kep'; did you mean kept?"),
        ('"10-11"', '"10-9"', "the range 10-9 ends before it begins"),
        ('label = "B"', 'label = "A"', "names variant 'B'"),
        ("order = 1", "order =", "is not valid TOML"),
        ("order = 1", 'order = 1\nout_of_reach = "no"', "what is out of reach has no variants"),
        ("above = 0", "above = 0\nat = { step = 1, tokens = 2 }", "give one of step, rollouts"),
    ],
)
def test_mistakes_are_said_in_one_line(old, new, said):
    with pytest.raises(UserError) as error:
        parse_experiment("x", TEXT.replace(old, new, 1))
    assert said in str(error.value) and "experiment x" in str(error.value)
    assert "\n" not in str(error.value).replace("TOML: ", "")


def test_what_a_variant_starts_from_must_be_there(tmp_path):
    def load(same_as):
        shared = TEXT.replace('set.method.name = "sdpo"', f'same_as = "{same_as}"')
        (tmp_path / "x.toml").write_text(shared)
        return load_experiments(tmp_path)

    assert load("x/A")
    with pytest.raises(UserError, match="no such experiment"):
        load("y/A")
    with pytest.raises(UserError, match="no such variant"):
        load("x/C")
    with pytest.raises(UserError, match="leads back to itself"):
        load("x/B")


def test_a_wrong_setting_names_its_experiment(tmp_path):
    experiments = {"x": parse_experiment("x", TEXT.replace('"sdpo"', '"sdop"'))}
    with pytest.raises(UserError, match="experiment x, variant 'B': unknown method 'sdop'"):
        plan(experiments, "x", tmp_path, False)


def test_an_unknown_name_is_refused(experiments):
    with pytest.raises(UserError, match="did you mean table2"):
        chosen(experiments, ["tabel2"])
    assert list(chosen(experiments, ["fig8"])) == ["fig8"]


def write_tables():
    place = ROOT / "docs/write_tables.py"
    spec = importlib.util.spec_from_file_location("write_tables", place)
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def test_the_documentation_says_what_is_registered():
    tables = write_tables()
    text = (ROOT / "docs/evidence.md").read_text(encoding="utf-8")
    now = tables.between(text, "registered", tables.registered(load_experiments()))
    assert text == now, "run python docs/write_tables.py"
    assert "GRPO-8, 3 known" in text and "*RESD - SDPO+ss, mean@n at last, > 0*" in text


def test_results_are_copied_into_the_documentation(tmp_path, monkeypatch):
    tables = write_tables()
    monkeypatch.setattr(tables, "EVIDENCE", tmp_path / "docs/evidence.md")
    (tmp_path / "docs").mkdir()
    (tmp_path / "out/figures").mkdir(parents=True)
    (tmp_path / "out/figures/x.png").write_bytes(b"png")
    report = "# Evidence\n\nWritten.\n\n## X (Fig. 1)\n\n![X](figures/x.png)\n"
    (tmp_path / "out/evidence.md").write_text(report)
    page = "a\n<!-- results -->\nold\n<!-- end results -->\nb\n"
    now = tables.results(page, tmp_path / "out")
    written = "Written.\n\n### X (Fig. 1)\n\n![X](evidence-x.png)\n"
    assert now == f"a\n<!-- results -->\n{written}<!-- end results -->\nb\n"
    assert (tmp_path / "docs/evidence-x.png").read_bytes() == b"png"
