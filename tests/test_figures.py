from __future__ import annotations

import itertools

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from helpers import REPOSITORY, run_python
from matplotlib.colors import to_hex, to_rgb
from PIL import Image

from ciss import figures, initialisations, results, style
from ciss.config import read_config
from ciss.errors import CissError
from ciss.style import METHOD_NAMES, VARIANT_NAMES, Style, style_from_config

STYLE = Style(dpi=100)
#: points; what journals still print
SMALLEST = 5
TWELVE = [*[*METHOD_NAMES][:10], "mib_awt", "plop_awt"]


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
    found += [text for text in (figure._supxlabel, figure._supylabel) if text is not None]
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
    found = [text for text in found if text.get_visible() and text.get_text()]
    small = [text.get_text() for text in found if text.get_fontsize() < SMALLEST]
    assert small == []
    return [(text.get_text(), text.get_window_extent()) for text in found]


def assert_legible(figure):
    boxes = texts(figure)
    assert boxes
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
    "12 runs, 11 steps, 150 classes": (TWELVE, (101, *[5] * 10), 1, ()),
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


def test_variants_and_methods_added_later_have_a_look_of_their_own():
    assert STYLE.look("mib100").colour == STYLE.look("mib_awt").colour
    assert STYLE.look("mib100").marker != STYLE.look("mib").marker
    assert STYLE.look("lwf-mc").colour != STYLE.look("lwf").colour
    assert STYLE.look("pixels").colour != STYLE.look("pi").colour
    assert Style(colours={"mib": "#123456"}).look("mib100").colour == "#123456"
    new = STYLE.look("mine")
    assert new.colour not in {STYLE.look(method).colour for method in METHOD_NAMES}
    assert new.marker not in {STYLE.look(method).marker for method in METHOD_NAMES}


def test_runs_can_be_told_apart_in_grey():
    """Whatever the colours: by marker, line or filling."""
    inits = [
        "",
        *read_config(REPOSITORY / "config.yaml")["initialisations"],
        *initialisations.names(),
    ]
    methods = [*METHOD_NAMES, *VARIANT_NAMES]
    runs = [f"{method}_{init}" if init else method for method in methods for init in inits]
    assert len(runs) > 100
    looks = {(str(look.marker), str(look.line), look.filling) for look in map(STYLE.look, runs)}
    assert len(looks) == len(runs)


def linear(colour):
    """Linear sRGB, three numbers from 0 to 1."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def luminance(colour):
    """Relative luminance of sRGB, 0 to 1 (WCAG 2)."""
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


#: what people without one kind of cone see, in linear sRGB (Viénot, Brettel and Mollon 1999)
SIGHT = {
    "all cones": np.eye(3),
    "no long ones": [[0.11238, 0.88762, 0], [0.11238, 0.88762, 0], [0.00401, -0.00401, 1]],
    "no middle ones": [[0.29275, 0.70725, 0], [0.29275, 0.70725, 0], [-0.02234, 0.02234, 1]],
}


def lab(colour, sight):
    """CIE L*a*b* of a colour as seen."""
    seen = np.clip(np.array(sight) @ linear(colour), 0, 1)
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("sight", SIGHT.values(), ids=SIGHT)
@pytest.mark.parametrize(
    "colours",
    [
        [STYLE.look(method).colour for method in METHOD_NAMES],
        [*figures._CLASS_COLOURS, figures._BACKGROUND, figures._OTHER_CLASS, "#FFFFFF"],
    ],
    ids=["methods", "classes"],
)
def test_colours_stay_apart_for_colour_blind_readers(colours, sight):
    """Twice what the eye just notices is 4 or 5; methods have markers of their own beside it."""
    seen = [lab(colour, sight) for colour in colours]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert nearest > 8


def test_every_colour_stands_out_from_the_paper():
    for method in [*METHOD_NAMES, "mine", "another", "third"]:
        assert 1.05 / (luminance(STYLE.look(method).colour) + 0.05) > 2.2, method


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


def test_forgetting_of_many_runs_or_classes_is_a_map():
    tidy = made_up(TWELVE, (2, 1), seeds=2)
    figure = figures.forgetting_by_class(tidy, STYLE)
    lost = results.forgetting_by_class(tidy).groupby(["class_index", "run"])["forgetting"].mean()
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (2, 12)
    assert shown[1, TWELVE.index("mib_awt")] == pytest.approx(lost[(1, "mib_awt")])
    low, high = figure.axes[0].images[0].get_clim()
    assert low == -high
    assert "MiB + AWT" in [text for text, _ in texts(figure)]


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


def test_learning_curves_of_several_methods_have_a_panel_each():
    runs = [run for method in METHOD_NAMES for run in (method, f"{method}_awt")]
    history = pd.DataFrame({"epoch": range(1, 31), "iou_new": np.linspace(1, 60, 30)})
    runs = [*runs, "mib_random"]
    figure = figures.learning_curve(
        dict.fromkeys(runs, history), STYLE, y="iou_new", y_label="IoU of the new classes (%)"
    )
    assert [axes.get_title() for axes in figure.axes] == [*METHOD_NAMES.values()]
    assert [len(axes.lines) for axes in figure.axes] == [
        3 if method == "mib" else 2 for method in METHOD_NAMES
    ]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["method's own", "AWT", "random"]
    assert_legible(figure)
    two = figures.learning_curve(
        dict.fromkeys(["ft", "mib", "mib_awt"], history), STYLE, y="iou_new", y_label="IoU (%)"
    )
    assert_legible(two)
    variants = [run for method in VARIANT_NAMES for run in (method, f"{method}_awt")]
    assert_legible(
        figures.learning_curve(
            dict.fromkeys(variants, history), STYLE, y="iou_new", y_label="IoU (%)"
        )
    )


SHARES = {
    "mib_random": ("random", 0),
    "mib_awt-10": ("awt", 10),
    "mib_awt": ("awt", 25),
    "mib_awt-75": ("awt", 75),
    "mib_randchannels": ("randchannels", 25),
    "plop_awt": ("awt", 25),
    "plop_awt-50": ("awt", 50),
}


@pytest.mark.parametrize("seeds", [1, 3])
def test_scores_over_the_share_of_channels(seeds):
    summary = results.summary(made_up([*SHARES, "ft"], (3, 1, 1), seeds=seeds))
    figure = figures.transfer_shares(summary, SHARES, STYLE)
    mean = summary.groupby("run")[["old", "new", "all"]].mean()
    for axes, score in zip(figure.axes, ["old", "new", "all"], strict=True):
        drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
        expected = [[x, mean.loc[run, score]] for run, (_, x) in SHARES.items()]
        assert drawn["MiB + AWT"] == expected[:4]
        assert drawn["MiB + random channels"] == [expected[0], expected[4]]
        assert drawn["PLOP + AWT"] == expected[5:]
    assert_legible(figure)


def test_the_script_of_the_shares_writes_both_files(tmp_path):
    summary = results.summary(made_up(SHARES, (3, 1, 1)))
    other = summary.assign(scenario="another", n_base=7)
    results.write_table(tmp_path / "summary.csv", pd.concat([summary, other]))
    shares = [f"{run}={which}={share}" for run, (which, share) in SHARES.items()]
    words = ["--summary", "summary.csv", "--dataset", "voc", "--scenario", "x", "--output", "."]
    script = REPOSITORY / "workflow_scripts" / "shares_figure.py"
    done = run_python(script, *words, "--shares", *shares, "--option", "dpi=50", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "transfer_shares.png") as image:
        assert image.size[0] == 170
    assert (tmp_path / "transfer_shares.pdf").read_bytes().startswith(b"%PDF")


def test_channel_scores_are_sorted_and_marked():
    scores = np.array([0.1, 0.4, -0.2, 0.3])
    chosen = np.array([False, True, False, True])
    figure = figures.channel_scores({"step 1": (scores, chosen)}, STYLE)
    (axes,) = figure.axes
    bars = sorted(axes.patches, key=lambda bar: bar.get_x())
    assert [bar.get_height() for bar in bars] == [0.4, 0.3, 0.1, -0.2]
    colours = [bar.get_facecolor() for bar in bars]
    assert colours[0] == colours[1] != colours[2] == colours[3]
    assert axes.get_title() == "step 1\n2 of 4"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == ["chosen", "not chosen"]
    assert_legible(figure)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_channel_scores_have_a_panel_each(count):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(count, 256)) ** 3 * 1e-6
    panels = {f"{i} checked-orange-triangle": (row, row > 0) for i, row in enumerate(scores)}
    figure = figures.channel_scores(panels, STYLE)
    assert [len(axes.patches) for axes in figure.axes] == [256] * count
    assert_legible(figure)


def attributed(title="cow", shape=(40, 60)):
    shown = np.zeros(shape, dtype=bool)
    shown[10:20, 10:30] = True
    image = np.zeros((*shape, 3), dtype=np.uint8)
    return figures.AttributedImage(title, image, shown, np.eye(4), -2 * np.eye(4))


def test_attribution_covers_the_image_and_rows_have_one_scale():
    figure = figures.attribution_overlays(
        [attributed(), attributed("checked-orange-triangle", (60, 60))], STYLE
    )
    assert len(figure.axes) == 6
    _, chosen, others = figure.axes[:3]
    under, over = chosen.images
    assert under.get_extent() == over.get_extent() == pytest.approx((-0.5, 59.5, 39.5, -0.5))
    strong, weak = (axes.images[1].get_array()[0, 0] for axes in (others, chosen))
    purple, orange = (np.array(mpl.colormaps["PuOr_r"](value)) for value in (0.0, 0.75))
    np.testing.assert_allclose(strong[:3], purple[:3], atol=0.01)
    np.testing.assert_allclose(weak[:3], orange[:3], atol=0.01)
    assert strong[3] > weak[3] > 0
    assert others.images[1].get_array()[0, 1, 3] == 0
    assert_legible(figure)


def test_an_image_full_of_one_class_or_without_attribution_is_drawn():
    row = attributed()._replace(shown=np.ones((40, 60), dtype=bool), chosen=np.zeros((4, 4)))
    assert_legible(figures.attribution_overlays([row._replace(others=np.zeros((4, 4)))], STYLE))


@pytest.mark.parametrize("n_steps", [1, 2, 4, 6, 16])
def test_predictions(n_steps):
    image = np.zeros((20, 30, 3), dtype=np.uint8)
    truth = np.full((20, 30), 3)
    truth[0] = 255
    predicted = [np.full((20, 30), k % 2) for k in range(n_steps)]
    names = [f"class {i}" for i in range(21)]
    figure = figures.predictions([(image, truth, predicted)] * 2, range(n_steps), names, STYLE)
    assert len(figure.axes) == 2 * (2 + n_steps)
    shown = figure.axes[1].images[0].get_array()
    # The ground truth's classes have the first colours, whatever is predicted.
    assert to_hex(shown[5, 5] / 255) == "#0072b2"
    assert shown[0, 0].tolist() == [255, 255, 255]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    guessed = ["class 1"] if n_steps > 1 else []
    assert legend == ["class 0", *guessed, "class 3", "void"]
    assert_legible(figure)


def test_predictions_of_many_classes_share_the_last_colour():
    names = [f"a name of class {i}" for i in range(151)]
    truth = np.arange(20, 26).repeat(5).reshape(6, 5)
    guess = np.arange(30, 60).reshape(6, 5)
    image = np.zeros((6, 5, 3), dtype=np.uint8)
    figure = figures.predictions([(image, truth, [guess])], [0], names, STYLE)
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[:6] == [f"a name of class {i}" for i in range(20, 26)]
    assert legend[-1] == "another class"
    shown = figure.axes[2].images[0].get_array().reshape(-1, 3)
    assert len(np.unique(shown, axis=0)) == len(legend) - 6
    assert_legible(figure)
