"""Results of runs that are compared: the table and the picture."""

import io
from itertools import pairwise

import pytest
from compared import make_finished, metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import style
from matplotlib.image import imread
from rich.console import Console

from resd.errors import UserError
from resd.report.labels import spread
from resd.report.plot import STYLE, draw, save_pictures
from resd.report.results import read_result
from resd.report.table import make_rows, markdown_table, rich_table, title

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
    with style.context(["default", STYLE]):
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
