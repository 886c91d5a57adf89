from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers import REPOSITORY, run_python
from matplotlib.colors import to_hex
from PIL import Image

from ciss import figures, style
from ciss.errors import CissError
from ciss.style import METHOD_NAMES, Style, style_from_config

STYLE = Style(dpi=100)
TWELVE = [*METHOD_NAMES, "mib_awt", "plop_awt"]


def made_up(runs, classes_per_step, seeds=1, absent=()):
    rng = np.random.default_rng(0)
    learned_at = np.repeat(range(len(classes_per_step)), classes_per_step).tolist()
    rows = [
        (run, *style.split_run(run), seed, step, i, f"class {i}", learned_at[i])
        for run in runs
        for seed in range(seeds)
        for step in range(len(classes_per_step))
        for i in range(sum(classes_per_step[: step + 1]))
    ]
    columns = ["run", "method", "init", "seed", "step", "class_index", "class_name", "learned_at"]
    table = pd.DataFrame(rows, columns=columns)
    iou = rng.uniform(0, 100, len(table))
    return table.assign(
        dataset="voc",
        scenario="x",
        iou=np.where(table["class_index"].isin(absent), np.nan, iou),
        images=1,
        n_base=classes_per_step[0] - 1,
        n_classes=len(learned_at) - 1,
        n_steps=len(classes_per_step),
    )


def texts(figure):
    """Visible texts of a drawn figure with their boxes in pixels."""
    figure.canvas.draw()
    found = []
    for axes in (axes for axes in figure.axes if axes.axison):
        found += [axes.title, axes.xaxis.label, axes.yaxis.label]
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            found += [
                tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
            found += [
                tick.label2 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high
            ]
    for legend in figure.legends:
        found += legend.get_texts()
    return [
        (text.get_text(), text.get_window_extent())
        for text in found
        if text.get_visible() and text.get_text()
    ]


def assert_legible(figure):
    boxes = texts(figure)
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.width + 1, text
        assert box.y1 <= figure.bbox.height + 1, text
        for other, other_box in boxes[:i]:
            assert not box.padded(-1).overlaps(other_box.padded(-1)), (text, other)


CASES = {
    "3 runs, 3 steps": (["ft", "mib", "mib_awt"], (11, 5, 5), 1, ()),
    "12 runs, 16 steps": (TWELVE, (6, *[1] * 15), 1, ()),
    "3 seeds, absent classes": (["mib", "mib_awt"], (16, 1, 1, 1, 1, 1), 3, (4, 18)),
    "150 classes": (["mib", "plop_awt"], (101, 50), 1, ()),
}


@pytest.mark.parametrize("font_size", [8, 10])
@pytest.mark.parametrize("case", CASES)
def test_no_text_overlaps_or_leaves_the_figure(case, font_size):
    tidy = made_up(*CASES[case])
    look = Style(dpi=100, font_size=font_size)
    for figure in (
        figures.miou_by_step(tidy, look),
        figures.forgetting_by_class(tidy, look),
        figures.class_heatmap(tidy[tidy["run"] == tidy["run"].iloc[0]], look),
    ):
        assert_legible(figure)
        assert figure.get_size_inches()[0] == pytest.approx(3.4)


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_lines_show_the_mean_over_seeds_and_a_band():
    tidy = made_up(["mib"], (3, 1), seeds=2)
    figure = figures.miou_by_step(tidy, STYLE)
    expected = tidy.groupby(["step", "seed"])["iou"].mean().groupby("step").mean()
    np.testing.assert_allclose(lines(figure)["MiB"].get_ydata(), expected)
    assert len(figure.axes[0].collections) == 1
    base = figures.base_miou_by_step(tidy, STYLE)
    old = tidy[tidy["learned_at"] == 0].groupby(["step", "seed"])["iou"].mean()
    np.testing.assert_allclose(lines(base)["MiB"].get_ydata(), old.groupby("step").mean())


def test_single_seed_has_no_band_and_a_missing_step_leaves_a_gap():
    tidy = made_up(["mib"], (3, 1, 1))
    figure = figures.miou_by_step(tidy[tidy["step"] != 1], STYLE)
    assert not figure.axes[0].collections
    assert np.isnan(lines(figure)["MiB"].get_ydata()).tolist() == [False, True, False]


def test_run_looks_the_same_whatever_is_beside_it():
    few = lines(figures.miou_by_step(made_up(["plop_awt", "mib"], (3, 1)), STYLE))
    many = lines(figures.miou_by_step(made_up(TWELVE, (3, 1)), STYLE))
    for name in ("PLOP + AWT", "MiB"):
        assert few[name].get_color() == many[name].get_color()
        assert few[name].get_marker() == many[name].get_marker()
        assert few[name].get_linestyle() == many[name].get_linestyle()
    looks = {
        (to_hex(line.get_color()), line.get_marker(), str(STYLE.look(run).line))
        for run, line in zip(TWELVE, many.values(), strict=True)
    }
    assert len(looks) == len(TWELVE)


def test_looks():
    assert STYLE.look("mib").colour == STYLE.look("mib_awt").colour
    assert STYLE.look("mib").line != STYLE.look("mib_awt").line
    assert STYLE.look("mib_awt").filling == "full"
    assert Style(colours={"mib": "#123456"}).look("mib_awt").colour == "#123456"
    assert STYLE.look("mine_own") == STYLE.look("mine_own")


def test_style_from_config():
    assert style_from_config({"font_size": 9}).font_size == 9
    with pytest.raises(CissError, match=r"figure setting 'fontsize' is unknown .*'font_size'"):
        style_from_config({"fontsize": 9})
    with pytest.raises(CissError, match="dpi must be a number"):
        style_from_config({"dpi": "high"})
    with pytest.raises(CissError, match="width must be above 0"):
        style_from_config({"width": 0})


def test_saved_files_are_the_same_each_time(tmp_path):
    tidy = made_up(["mib", "mib_awt"], (3, 1), seeds=2)
    first = figures.save(figures.miou_by_step(tidy, STYLE), tmp_path / "voc_3-1.first")
    second = figures.save(figures.miou_by_step(tidy, STYLE), tmp_path / "second")
    assert [path.name for path in first] == ["voc_3-1.first.pdf", "voc_3-1.first.png"]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
    assert b"CreationDate" not in first[0].read_bytes()
    with Image.open(first[1]) as image:
        assert image.size[0] == 340
    assert len(list(tmp_path.iterdir())) == 4


def test_no_global_state():
    # To ask for the backend would choose one, and import pyplot.
    names = [name for name in mpl.rcParams if name != "backend"]
    before = [mpl.rcParams[name] for name in names]
    figures.miou_by_step(made_up(["mib"], (3, 1)), Style(font_size=5))
    assert [mpl.rcParams[name] for name in names] == before


def test_pyplot_is_not_imported():
    # In a process of its own: other libraries that tests load may import it.
    program = "import sys, ciss.figures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert run_python("-c", program, cwd=REPOSITORY).returncode == 0


def test_heat_map_marks_absent_and_unlearned_classes():
    figure = figures.class_heatmap(made_up(["mib"], (3, 2), absent=[1]), STYLE)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (5, 2)
    assert shown.mask[:, 0].tolist() == [False, True, False, True, True]
    assert shown.mask[:, 1].tolist() == [False, True, False, False, False]
    assert axes.lines[0].get_xydata().tolist() == [[0, 1], [1, 1]]
    with pytest.raises(ValueError, match="one run"):
        figures.class_heatmap(made_up(["mib", "ft"], (3, 2)), STYLE)


def test_forgetting_needs_a_finished_run_with_something_to_forget():
    tidy = made_up(["mib"], (3, 1))
    for nothing in (tidy[tidy["step"] == 0], made_up(["ft"], (4,))):
        with pytest.raises(CissError, match="no forgetting to draw"):
            figures.forgetting_by_class(nothing, STYLE)
    with pytest.raises(CissError, match="no results"):
        figures.miou_by_step(tidy.iloc[:0], STYLE)
    with pytest.raises(ValueError, match="one dataset and scenario"):
        figures.miou_by_step(pd.concat([tidy, tidy.assign(scenario="y")]), STYLE)


def test_forgetting_draws_best_earlier_minus_final():
    tidy = made_up(["mib"], (2, 1)).assign(iou=[80.0, 70.0, 60.0, 75.0, 10.0])
    marks = lines(figures.forgetting_by_class(tidy, STYLE))["MiB"]
    assert marks.get_xdata().tolist() == [20, -5]


def test_learning_curve_averages_rows_of_one_epoch():
    history = pd.DataFrame({"epoch": [0, 0, 1, 1], "iou_cow": [1.0, 3.0, 5.0, np.nan]})
    figure = figures.learning_curve(
        {"mib": history, "mib_awt": history}, STYLE, y="iou_cow", y_label="IoU of cow (%)"
    )
    assert lines(figure)["MiB"].get_ydata().tolist() == [2, 5]
    assert figure.axes[0].get_ylabel() == "IoU of cow (%)"
    assert_legible(figure)
    with pytest.raises(CissError, match="history of mib has no column iou_dog; it has epoch, iou_"):
        figures.learning_curve({"mib": history}, STYLE, y="iou_dog")


def test_channel_scores_are_sorted_and_marked():
    scores = np.array([0.1, 0.4, -0.2, 0.3])
    figure = figures.channel_scores(scores, np.array([False, True, False, True]), STYLE)
    bars = sorted(figure.axes[0].patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == [0.4, 0.3, 0.1, -0.2]
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "chosen (2)",
        "not chosen (2)",
    ]


def test_attribution_covers_the_image():
    image = np.zeros((40, 60, 3), dtype=np.uint8)
    figure = figures.attribution_overlay(image, np.eye(4), STYLE)
    under, over = figure.axes[1].images
    assert under.get_extent() == over.get_extent() == pytest.approx((-0.5, 59.5, 39.5, -0.5))
    assert_legible(figure)


@pytest.mark.parametrize("n_steps", [2, 6, 16])
def test_predictions(n_steps):
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    truth = np.full((20, 30), 3)
    truth[0] = 255
    predicted = [np.full((20, 30), k % 2) for k in range(n_steps)]
    names = [f"class {i}" for i in range(21)]
    figure = figures.predictions([(image, truth, predicted)] * 2, range(n_steps), names, STYLE)
    assert len(figure.axes) == 2 * (2 + n_steps)
    assert figure.axes[1].images[0].get_array()[5, 5].tolist() == [128, 128, 0]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["class 0", "class 1", "class 3", "void"]
    assert_legible(figure)


def test_voc_palette():
    palette = figures.voc_palette()
    assert palette[[0, 1, 2, 3, 15, 20]].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [192, 128, 128],
        [0, 64, 128],
    ]
    assert len(np.unique(palette, axis=0)) == 256
