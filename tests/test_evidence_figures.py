"""What the pictures of the experiments show."""

import pytest
from matplotlib.axes import Axes
from test_evidence_registry import TEXT

from resd.errors import UserError
from resd.evidence.figures import median_curve, phase_seconds, save_figure
from resd.evidence.measure import Measured
from resd.evidence.registry import Panel, parse_experiment
from resd.evidence.results import Result


def run(end, seconds=2.0, tokens=100):
    evaluations = [
        {"step": step, "rollouts": 16 * step, "tokens": tokens * step, "seconds": seconds * step}
        | {"eval/mean": end * step / 2, "eval/best": end}
        for step in (0, 1, 2)
    ]
    times = {"time/step_s": seconds, "time/update_s": seconds / 2, "time/reflect_s": seconds / 4}
    words = [{"step": 1, "word": 0, "wrong": True, "loss": end, "tokens": 2}]
    words += [{"step": 1, "word": 0, "wrong": False, "loss": end, "tokens": 1}]
    steps = [
        {"step": i, "tokens": tokens * i, "seconds": 1, "rollouts": 1, **times} for i in (1, 2)
    ]
    return Measured(steps, evaluations, words)


def result(kind, a, b):
    text = TEXT.replace("panels = [{ x", 'kind = "KIND"\npanels = [{ x').replace("KIND", kind)
    text = text.replace('label = "A"', 'label = "A"\nx = 0\nline = "one"')
    text = text.replace('label = "B"', 'label = "B"\nx = 1\nline = "one"')
    return Result("x", parse_experiment("x", text), 4, {"A": a, "B": b}, {})


A = {(10, 0): run(0.2), (10, 1): run(0.4), (11, 0): run(0.9), (12, 0): run(0.5)}
B = {(10, 0): run(0.1, tokens=500), (11, 0): run(0.1, tokens=700)}


@pytest.mark.parametrize("kind", ["curves", "bars", "dial", "phases", "tokens"])
def test_every_kind_is_drawn(kind, tmp_path):
    save_figure(result(kind, A, B), tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size > 4_000
    assert [file.name for file in tmp_path.iterdir()] == ["x.png"]


@pytest.mark.parametrize("kind", ["curves", "bars", "dial", "tokens"])
def test_where_there_is_nothing_to_show_there_is_no_picture(kind, tmp_path):
    with pytest.raises(UserError, match="no run holds"):
        save_figure(result(kind, {}, {}), tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_a_curve_is_the_median_over_dialects_of_the_mean_over_seeds():
    points = median_curve(result("curves", A, B), "A", Panel())
    assert [x for x, *_ in points] == [0, 16, 32]
    _, low, middle, high = points[-1]
    assert (low, middle, high) == pytest.approx((0.4, 0.5, 0.7))  # of 0.3, 0.5, 0.9


def test_on_an_axis_where_runs_differ_a_step_stands_at_its_median():
    points = median_curve(result("curves", A, B), "B", Panel(x="tokens"))
    assert [x for x, *_ in points] == [0, 600, 1200]


def test_a_step_that_some_run_did_not_evaluate_is_left_out():
    short = run(0.5)
    runs = {(10, 0): run(0.2), (11, 0): Measured(short.steps, short.evaluations[:2])}
    points = median_curve(result("curves", runs, B), "A", Panel(x="step"))
    assert [x for x, *_ in points] == [0, 1]


def test_phases_are_medians():
    runs = {(10 + i, 0): run(0.5, seconds=s) for i, s in enumerate((2.0, 4.0, 40.0))}
    assert phase_seconds(result("phases", runs, B), "A") == {"reflect": 1.0, "update": 2.0}


def drawn(monkeypatch, tmp_path, kind, a, b):
    """x and y of every line that is drawn."""
    lines = []
    real = Axes.plot

    def plot(self, x, y, *rest, **more):
        lines.append(([float(v) for v in x], [float(v) for v in y], more.get("label")))
        return real(self, x, y, *rest, **more)

    monkeypatch.setattr(Axes, "plot", plot)
    save_figure(result(kind, a, b), tmp_path / "x.png")
    return lines


def test_a_dial_is_a_line_a_method(monkeypatch, tmp_path):
    ((x, y, label),) = drawn(monkeypatch, tmp_path, "dial", A, B)
    assert label == "one" and x == [0, 1] and y == pytest.approx([0.5, 0.1])


def test_bars_show_every_dialect_the_interval_and_the_median(monkeypatch, tmp_path):
    dots, interval, middle, *_ = drawn(monkeypatch, tmp_path, "bars", A, B)
    assert dots[0] == pytest.approx([0.3, 0.9, 0.5]) and dots[1] == [0, 0, 0]
    assert interval[0] == pytest.approx([0.3, 0.9])
    assert middle[0] == [0.5]


def test_the_loss_of_a_token_by_its_word(monkeypatch, tmp_path):
    wrong, right, *_ = drawn(monkeypatch, tmp_path, "tokens", {(10, 0): A[10, 0]}, B)
    assert (wrong[1], wrong[2]) == (pytest.approx([0.1]), "wrong")
    assert (right[1], right[2]) == (pytest.approx([0.2]), "right")
