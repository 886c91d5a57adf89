"""Figures of results as PDF and PNG, legible in one column of a paper.

Every function returns a ``Figure`` that no global state of Matplotlib knows; ``save`` writes it.
Labels of classes are in learning order, scores in percent.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colorbar import Colorbar
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from ciss import results
from ciss.datasets.base import BACKGROUND, VOID
from ciss.errors import CissError
from ciss.files import replacing
from ciss.style import Style, pretty_name, split_run

P = ParamSpec("P")

_NOT_LEARNED = "#E8E8E8"
_FORGETTING = "forgetting (points of IoU)"
_CHOSEN, _LEFT = "#D55E00", "#B0B0B0"
_BACKGROUND, _OTHER_CLASS = "#D4D4D4", "#1A1A1A"
#: of classes in label maps: Okabe and Ito's, and three of Tol's "muted" ones
_CLASS_COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#F0E442",
    "#332288",
    "#882255",
    "#999933",
)
#: with more, forgetting is a map: marks would cover each other
_MARKED_RUNS, _MARKED_CLASSES = 6, 40
_POINTS_PER_INCH = 72


def _styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Run ``function`` under the settings of its ``style`` argument and leave none behind."""

    @functools.wraps(function)
    def styled(*args: P.args, **kwargs: P.kwargs) -> Figure:
        style = next(a for a in (*args, *kwargs.values()) if isinstance(a, Style))
        with mpl.rc_context(_settings(style)):
            return function(*args, **kwargs)

    return styled


def _settings(style: Style) -> Any:
    small = 0.875 * style.font_size
    return {
        "font.family": style.font_family,
        "font.size": style.font_size,
        "axes.labelsize": style.font_size,
        "axes.titlesize": style.font_size,
        "xtick.labelsize": small,
        "ytick.labelsize": small,
        "legend.fontsize": small,
        "legend.frameon": False,
        "legend.handlelength": 2.6,
        "legend.columnspacing": 1.2,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "lines.linewidth": style.line_width,
        "lines.markersize": style.marker_size,
        "image.cmap": style.colour_map,
    }


def save(figure: Figure, stem: Path | str) -> tuple[Path, Path]:
    """Write ``figure`` to ``stem`` with ``.pdf`` and ``.png`` added, each whole or not at all.

    Equal figures give equal bytes: neither dates nor versions are recorded. Text in the PDF stays
    text (TrueType, which publishers accept).
    """
    stem = Path(stem)
    pdf, png = (stem.with_name(f"{stem.name}.{suffix}") for suffix in ("pdf", "png"))
    with mpl.rc_context({"pdf.fonttype": 42}):
        with replacing(pdf) as path:
            metadata = {"CreationDate": None, "Producer": None, "Creator": None}
            figure.savefig(path, format="pdf", metadata=metadata)
        with replacing(png) as path:
            figure.savefig(path, format="png", metadata={"Software": None})
    return pdf, png


@_styled
def nothing_yet(message: str, style: Style) -> Figure:
    """A sentence in a figure's place, for a report that takes what is there."""
    figure, axes = _panel(style, height=0.5 * style.height)
    axes.set_axis_off()
    axes.text(0.5, 0.5, message, ha="center", va="center", wrap=True, transform=axes.transAxes)
    return figure


@_styled
def miou_by_step(tidy: pd.DataFrame, style: Style) -> Figure:
    """MIoU of all classes seen so far after each step, a line for each run.

    ``tidy``: ``results.collect`` of one dataset and scenario. Several seeds give their mean and a
    band of ± one sample standard deviation.
    """
    return _lines_by_step(tidy, "all", "mIoU (%)", style)


@_styled
def base_miou_by_step(tidy: pd.DataFrame, style: Style) -> Figure:
    """MIoU of the base classes and the background after each step: how they are forgotten."""
    return _lines_by_step(tidy, "old", "mIoU of base classes (%)", style)


def _lines_by_step(tidy: pd.DataFrame, score: str, label: str, style: Style) -> Figure:
    _one_scenario(tidy)
    steps = results.by_step(tidy)
    n_steps = int(steps["n_steps"].iloc[0])
    figure, axes = _panel(style)
    handles = []
    for run, group in steps.groupby("run", sort=False):
        over = group.groupby("step")[score].agg(["mean", "std"]).reindex(range(n_steps))
        line = _line(axes, str(run), over.index, over["mean"], style, len(steps["run"].unique()))
        _band(axes, over, line, steps["run"].nunique())
        handles.append(line)
    axes.set(xlabel="step", ylabel=label, xlim=(-0.3, max(n_steps - 1, 1) + 0.3))
    axes.set_ylim(bottom=max(axes.get_ylim()[0], 0), top=min(axes.get_ylim()[1], 100))
    _step_ticks(axes, list(range(n_steps)), 0.8 * style.width, style)
    _legend_below(figure, handles, style)
    return figure


@_styled
def class_heatmap(tidy: pd.DataFrame, style: Style) -> Figure:
    """IoU of each class (rows, in learning order) after each step (columns) of one run.

    Several seeds are averaged. Grey: not learned yet; a cross: absent from the ground truth.
    Lines separate the classes of one step from those of the next.
    """
    _one_scenario(tidy)
    if tidy["run"].nunique() != 1:
        raise ValueError("class_heatmap shows one run")
    wide = tidy.groupby(["class_index", "step"])["iou"].mean().unstack("step")
    known = tidy.groupby(["class_index", "step"]).size().unstack("step").notna()
    classes = tidy.drop_duplicates("class_index").sort_values("class_index")
    figure, axes, every = _class_panel(len(wide), style, extra=0.6)
    image = axes.imshow(
        np.ma.masked_invalid(wide.to_numpy(float)),
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=100,
        cmap=style.colour_map,
    )
    axes.set_facecolor(_NOT_LEARNED)
    absent = np.argwhere(known.to_numpy() & wide.isna().to_numpy())
    axes.plot(absent[:, 1], absent[:, 0], "x", color="#555555", ms=0.6 * style.marker_size)
    sizes = np.bincount(classes["learned_at"].to_numpy(int))
    for step, stop in enumerate(sizes.cumsum()[:-1]):
        # With one class a step the staircase says it all.
        if step == 0 or sizes[step] > 1:
            axes.axhline(stop - 0.5, color="white", lw=0.6)
    axes.set(xlabel="step")
    _class_ticks(axes, classes, every)
    _step_ticks(axes, wide.columns.to_numpy(int).tolist(), 0.5 * style.width, style)
    axes.tick_params(length=2)
    _colour_bar(figure, image, axes, "IoU (%)")
    return figure


@_styled
def forgetting_by_class(tidy: pd.DataFrame, style: Style) -> Figure:
    """Best earlier IoU minus the final one for each class (rows) and run.

    Marks with a line of ± one sample standard deviation over the seeds where few runs and classes
    are shown, else a map of means with a column for each run. Classes that only the last step
    knows have none and no row. Raises ``CissError`` when no run is finished or nothing can be
    forgotten.
    """
    _one_scenario(tidy)
    lost = results.forgetting_by_class(tidy).dropna(subset="forgetting")
    if lost.empty:
        raise CissError(
            "no run has all its steps and a class to forget: there is no forgetting to draw"
        )
    few = lost["run"].nunique() <= _MARKED_RUNS and lost["class_index"].nunique() <= _MARKED_CLASSES
    return (_forgetting_marks if few else _forgetting_map)(lost, style)


def _forgetting_marks(lost: pd.DataFrame, style: Style) -> Figure:
    classes = lost.drop_duplicates("class_index").sort_values("class_index")
    place = {index: i for i, index in enumerate(classes["class_index"])}
    runs = list(lost["run"].unique())
    line = 1.25 * style.font_size / _POINTS_PER_INCH
    row = max(line, 0.6 * style.marker_size * (len(runs) + 1) / _POINTS_PER_INCH)
    body = min(row * len(place) + 0.1, style.max_height - 0.5)
    figure, axes = _panel(style, height=body + 0.5)
    # One row's runs lie above each other, so that equal values do not hide one another.
    spread = np.linspace(-0.32, 0.32, len(runs)) if len(runs) > 1 else [0.0]
    handles = []
    for shift, run in zip(spread, runs, strict=True):
        over = lost[lost["run"] == run].groupby("class_index")["forgetting"].agg(["mean", "std"])
        y = np.array([place[index] for index in over.index]) + shift
        mark = _mark(run, style)
        low, high = over["mean"] - over["std"], over["mean"] + over["std"]
        axes.hlines(y, low, high, color=mark["color"], lw=0.6)
        handles += axes.plot(over["mean"], y, linestyle="none", label=_name(run), **mark)
    every = int(np.ceil(line * len(place) / body - 1e-9))
    for i in range(every, len(place), every):
        axes.axhline(i - 0.5, color="#EEEEEE", lw=0.5, zorder=0)
    axes.axvline(0, color="#888888", lw=0.6, zorder=0)
    axes.set(xlabel=_FORGETTING, ylim=(len(place) - 0.35, -0.65))
    _class_ticks(axes, classes, every)
    axes.tick_params(axis="y", length=0)
    _legend_below(figure, handles, style)
    return figure


def _forgetting_map(lost: pd.DataFrame, style: Style) -> Figure:
    classes = lost.drop_duplicates("class_index").sort_values("class_index")
    runs = list(lost["run"].unique())
    wide = lost.groupby(["class_index", "run"])["forgetting"].mean().unstack("run")[runs]
    values = wide.to_numpy(float)
    figure, axes, every = _class_panel(len(classes), style, extra=1.0)
    largest = float(np.nanmax(np.abs(values))) or 1.0
    # White is nothing forgotten; both ends are dark, and few classes ever gain.
    image = axes.imshow(
        np.ma.masked_invalid(values),
        aspect="auto",
        interpolation="nearest",
        vmin=-largest,
        vmax=largest,
        cmap="PuOr_r",
    )
    axes.set_facecolor(_NOT_LEARNED)
    _class_ticks(axes, classes, every)
    axes.set_xticks(range(len(runs)), [_name(run) for run in runs], rotation=90)
    axes.tick_params(length=2)
    bar = _colour_bar(figure, image, axes, _FORGETTING)
    bar.ax.set_ylim(min(float(np.nanmin(values)), 0), max(float(np.nanmax(values)), 0))
    return figure


@_styled
def learning_curve(
    curves: Mapping[str, pd.DataFrame],
    style: Style,
    x: str = "epoch",
    y: str = "loss",
    x_label: str | None = None,
    y_label: str | None = None,
) -> Figure:
    """Column ``y`` over column ``x`` of each run's table: how fast a class is learned.

    A panel for each method, its initialisations as lines; methods with a single run share one.
    ``curves``: run as spelled in experiments → training history, such as with columns ``epoch``,
    ``iteration``, loss terms and ``iou_<class>``. Rows that share their ``x`` (seeds, iterations
    of an epoch) give a mean and a band of ± one sample standard deviation. Raises ``CissError``
    when a table lacks a column.
    """
    for run, table in curves.items():
        if lacking := {x, y} - set(table.columns):
            raise CissError(
                f"the history of {run} has no column {', '.join(sorted(lacking))}; "
                f"it has {', '.join(map(str, table.columns))}"
            )
    methods = list(dict.fromkeys(split_run(run)[0] for run in curves))
    apart = 1 < len(methods) < len(curves)
    figure, panels = _panels(len(methods) if apart else 1, style)
    handles: dict[str, Line2D] = {}
    for run, table in curves.items():
        method, init = split_run(run)
        axes = panels[methods.index(method) if apart else 0]
        over = table.dropna(subset=y).groupby(x)[y].agg(["mean", "std"])
        line = _line(axes, run, over.index, over["mean"], style, len(curves))
        if apart:
            line.set_markevery(max(len(over) // 6, 1))
        _band(axes, over, line, 1 if apart else len(curves))
        handles.setdefault(init if apart else run, line)
    for axes in panels:
        axes.margins(x=0.05)
        axes.xaxis.set_major_locator(MaxNLocator(4 if apart else "auto", integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4 if apart else "auto"))
    if not apart:
        panels[0].set(xlabel=x_label or x, ylabel=y_label or y)
        _legend_below(figure, list(handles.values()), style)
        return figure
    for axes, method in zip(panels, methods, strict=True):
        axes.set_title(pretty_name(method), pad=2)
    for axes in panels[-3:]:
        axes.set_xlabel(x_label or x)
    figure.supylabel(y_label or y, fontsize=style.font_size)
    _legend_below(figure, [_init_handle(init, style) for init in handles], style)
    return figure


def _init_handle(init: str, style: Style) -> Line2D:
    """What a legend shows of an initialisation, whatever the method."""
    run = f"any_{init}" if init else "any"
    mark = _mark(run, style) | {"color": "#444444", "marker": "o"}
    if mark["markerfacecolor"] != "white":
        mark["markerfacecolor"] = "#444444"
    label = pretty_name("", init).removeprefix(" + ") or "method's own"
    return Line2D([], [], linestyle=style.look(run).line, label=label, **mark)


@_styled
def transfer_shares(
    summary: pd.DataFrame, shares: Mapping[str, tuple[str, float]], style: Style
) -> Figure:
    """Scores over the share of the background's channels that new classifiers start from.

    ``summary``: of one dataset and scenario; ``shares``: run → which channels (``awt`` or
    ``randchannels``) and their share in percent; ``random`` starts without any and belongs to
    every line of its method. Panels: base classes, new classes, all. Several seeds give their mean
    and bars of ± one sample standard deviation.
    """
    base, last = (int(summary[name].iloc[0]) for name in ("n_base", "n_classes"))
    new = f"{base + 1}–{last}" if last > base + 1 else str(last)
    labels = {"old": f"mIoU 0–{base} (%)", "new": f"mIoU {new} (%)", "all": "mIoU all (%)"}
    figure = _figure(style, 1.6 * style.height)
    panels = figure.subplots(len(labels), 1, sharex=True)
    lines: dict[tuple[str, str], list[str]] = {}
    for run, (which, _) in shares.items():
        lines.setdefault((split_run(run)[0], which), []).append(run)
    starts = {method: runs for (method, which), runs in lines.items() if which == "random"}
    handles = []
    for (method, which), runs in lines.items():
        if which == "random":
            continue
        members = sorted([*starts.get(method, []), *runs], key=lambda run: shares[run][1])
        for axes, score in zip(panels, labels, strict=True):
            over = summary.groupby("run")[score].agg(["mean", "std"]).reindex(members)
            at = [shares[run][1] for run in members]
            # Drawn as the line's own initialisation, whatever variants its points are.
            run = f"{method}_{which}"
            line = _line(axes, run, at, over["mean"], style, len(lines))
            axes.errorbar(
                at, over["mean"], over["std"], fmt="none", ecolor=line.get_color(), elinewidth=0.6
            )
            if score == "old":
                handles.append(line)
    for axes, label in zip(panels, labels.values(), strict=True):
        _small_ticks(axes, style)
        axes.set_ylabel(label)
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.margins(y=0.12)
    ticks = sorted({share for _, share in shares.values()})
    panels[-1].set_xticks(ticks, [f"{share:g}" for share in ticks])
    panels[-1].set_xlabel("channels transferred (%)")
    figure.align_ylabels(panels)
    _legend_below(figure, handles, style)
    return figure


@_styled
def channel_scores(
    panels: Mapping[str, tuple[NDArray[np.floating], NDArray[np.bool_]]], style: Style
) -> Figure:
    """Attribution scores of the classifier's input channels, sorted, the chosen ones marked.

    ``panels``: title → scores [C] and which are chosen, bool [C].
    """
    if len(panels) == 1:
        figure, grid = _panel(style, height=0.85 * style.height)
        axes_of = [grid]
    else:
        rows = -(-len(panels) // 2)
        figure = _figure(style, 0.65 * style.height * rows + 0.2)
        every = figure.subplots(rows, 2, squeeze=False).flatten()
        for axes in every[len(panels) :]:
            axes.remove()
        axes_of = list(every[: len(panels)])
    for axes, (title, (scores, chosen)) in zip(axes_of, panels.items(), strict=True):
        scores, chosen = np.asarray(scores, dtype=float), np.asarray(chosen, dtype=bool)
        order = np.argsort(-scores, kind="stable")
        rank = np.arange(len(scores)) + 1
        for mask, colour in ((chosen[order], _CHOSEN), (~chosen[order], _LEFT)):
            # The edge closes the seams that viewers show between bars.
            axes.bar(rank[mask], scores[order][mask], 1, color=colour, edgecolor=colour, lw=0.2)
        axes.axhline(0, color="#444444", lw=0.5)
        _small_ticks(axes, style)
        axes.set_title(f"{_shorten(title)}\n{int(chosen.sum())} of {len(chosen)}", pad=3)
        axes.set_xlim(0, len(scores) + 1)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.ticklabel_format(axis="y", scilimits=(-2, 3), useMathText=True)
        axes.yaxis.get_offset_text().set_fontsize(mpl.rcParams["ytick.labelsize"])
    for axes in axes_of[-2:]:
        axes.set_xlabel("channel, by rank")
    figure.supylabel("attribution score", fontsize=style.font_size)
    handles = [Patch(color=_CHOSEN, label="chosen"), Patch(color=_LEFT, label="not chosen")]
    _legend_below(figure, handles, style)
    return figure


class AttributedImage(NamedTuple):
    """An image and where the channels speak for the background, positive, or against it."""

    title: str
    #: [H, W, 3] uint8
    image: NDArray[np.uint8]
    #: [H, W] bool, the pixels of the new class
    shown: NDArray[np.bool_]
    #: [h, w] mean over the chosen channels, laid over the whole image
    chosen: NDArray[np.floating]
    #: [h, w] mean over the other ones
    others: NDArray[np.floating]


@_styled
def attribution_overlays(rows: Sequence[AttributedImage], style: Style) -> Figure:
    """Images of new classes beside themselves under the attribution of two sets of channels.

    The new class is outlined. Both maps of a row have one scale, its largest absolute value.
    """
    panel = 0.29 * style.width
    heights = [row.image.shape[0] / row.image.shape[1] for row in rows]
    figure = _figure(style, panel * sum(heights) + 0.45)
    grid = figure.subplots(len(rows), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    colours = mpl.colormaps["PuOr_r"]
    for line, row in zip(grid, rows, strict=True):
        height, width = row.image.shape[:2]
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        grey = row.image.mean(axis=2)
        largest = max(float(np.abs(part).max()) for part in (row.chosen, row.others)) or 1.0
        line[0].imshow(row.image)
        for axes, part in zip(line[1:], (row.chosen, row.others), strict=True):
            axes.imshow(grey, cmap="gray", vmin=0, vmax=255)
            strength = np.asarray(part, dtype=float) / largest
            shade = colours(0.5 + strength / 2)
            # The image shows through where the channels say little.
            shade[..., 3] = 0.9 * np.sqrt(np.abs(strength))
            axes.imshow(shade, extent=extent, interpolation="bilinear")
        for axes in line:
            if row.shown.any() and not row.shown.all():
                for colour, weight in (("black", 1.6), ("white", 0.8)):
                    axes.contour(row.shown, levels=[0.5], colors=colour, linewidths=weight)
            axes.set(xticks=[], yticks=[], xlim=extent[:2], ylim=extent[2:])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(_shorten(row.title), fontsize=0.875 * style.font_size)
    for axes, title in zip(grid[0], ("image", "chosen", "not chosen"), strict=True):
        axes.set_title(title, pad=2)
    handles = [
        Patch(color=colours(0.9), label="for the background"),
        Patch(color=colours(0.1), label="against it"),
    ]
    _legend_below(figure, handles, style, short=True)
    return figure


@_styled
def predictions(
    rows: Sequence[tuple[NDArray[np.uint8], NDArray[np.integer], Sequence[NDArray[np.integer]]]],
    steps: Sequence[int],
    class_names: Sequence[str],
    style: Style,
) -> Figure:
    """Rows of image, ground truth and the prediction after each of ``steps``.

    ``rows``: image [H, W, 3] uint8, labels [H, W] (255 void) and a label map for each step. The
    legend names the classes that occur. Colours go to the classes of the ground truth first, in
    learning order: figures of the same images agree in them. Classes for which no colour is left
    share one.
    """
    truths = sorted({label for _, truth, _ in rows for label in np.unique(truth).tolist()})
    guessed = sorted(
        {label for *_, maps in rows for labels in maps for label in np.unique(labels).tolist()}
    )
    classes = [n for n in dict.fromkeys([*truths, *guessed]) if n not in (BACKGROUND, VOID)]
    palette = np.full((256, 3), _rgb(_OTHER_CLASS), dtype=np.uint8)
    palette[[BACKGROUND, VOID]] = _rgb(_BACKGROUND), _rgb("#FFFFFF")
    named = classes[: len(_CLASS_COLOURS)]
    for label, colour in zip(named, _CLASS_COLOURS, strict=False):
        palette[label] = _rgb(colour)

    n_columns = 2 + len(steps)
    panel = style.width / n_columns
    heights = [image.shape[0] / image.shape[1] for image, _, _ in rows]
    figure = _figure(style, panel * sum(heights) + 0.25)
    grid = figure.subplots(
        len(rows), n_columns, squeeze=False, gridspec_kw={"height_ratios": heights}
    )
    figure.set_layout_engine("constrained", w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    for line, (image, truth, predicted) in zip(grid, rows, strict=True):
        line[0].imshow(image)
        for axes, labels in zip(line[1:], (truth, *predicted), strict=True):
            axes.imshow(palette[labels], interpolation="nearest")
        for axes in line:
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color="#888888", linewidth=0.4)
    titles = ["image", "truth", *(f"step {k}" for k in steps)]
    # A title is about four times as wide as its letters are high.
    fits = panel * _POINTS_PER_INCH / 4
    size, rotation = (min(style.font_size, fits), 0) if fits >= 5 else (0.75 * style.font_size, 90)
    for axes, title in zip(grid[0], titles, strict=True):
        axes.set_title(title, pad=2, fontsize=size, rotation=rotation)
    entries = [(_BACKGROUND, class_names[BACKGROUND])] if BACKGROUND in [*truths, *guessed] else []
    entries += [
        (colour, _shorten(class_names[label]))
        for label, colour in sorted(zip(named, _CLASS_COLOURS, strict=False))
    ]
    if len(named) < len(classes):
        entries.append((_OTHER_CLASS, "another class"))
    if VOID in truths:
        entries.append(("#FFFFFF", "void"))
    handles = [
        Patch(facecolor=colour, edgecolor="#444444", linewidth=0.4, label=name)
        for colour, name in entries
    ]
    _legend_below(figure, handles, style, short=True)
    return figure


def _rgb(colour: str) -> list[int]:
    return [round(255 * part) for part in to_rgb(colour)]


def _figure(style: Style, height: float) -> Figure:
    figure = Figure(figsize=(style.width, height), dpi=style.dpi, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _panel(style: Style, height: float | None = None) -> tuple[Figure, Axes]:
    figure = _figure(style, height or style.height)
    axes = figure.add_subplot()
    _small_ticks(axes, style)
    return figure, axes


def _panels(count: int, style: Style, sharey: bool = True) -> tuple[Figure, list[Axes]]:
    """Return a grid of ``count`` axes, three in a row, one alone as ``_panel`` makes it."""
    if count == 1:
        figure, axes = _panel(style)
        return figure, [axes]
    columns = min(count, 3)
    rows = -(-count // columns)
    # One row must hold the label of all rows.
    figure = _figure(style, max(0.4 * rows, 0.75) * style.height + 0.25)
    grid = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False).flatten()
    for position, axes in enumerate(grid):
        _small_ticks(axes, style)
        if position >= count:
            axes.remove()
        elif position + columns >= count:
            # The last of its column: nothing below it shows the shared labels.
            axes.tick_params(labelbottom=True)
    return figure, list(grid[:count])


def _small_ticks(axes: Axes, style: Style) -> None:
    # Ticks are made when the figure is drawn, when the settings of today are gone.
    axes.tick_params(labelsize=mpl.rcParams["xtick.labelsize"], labelfontfamily=style.font_family)


def _class_panel(n_classes: int, style: Style, extra: float) -> tuple[Figure, Axes, int]:
    """Axes with a row a class and ``extra`` inches below, and every how many rows have a name."""
    row = 1.25 * style.font_size / _POINTS_PER_INCH
    body = min(max(row * n_classes, 0.6 * style.height), style.max_height - extra)
    figure, axes = _panel(style, height=body + extra)
    return figure, axes, int(np.ceil(n_classes * row / body - 1e-9))


def _name(run: str) -> str:
    return pretty_name(*split_run(run))


def _mark(run: str, style: Style) -> dict[str, Any]:
    look = style.look(run)
    return {
        "color": look.colour,
        "marker": look.marker,
        "fillstyle": "full" if look.filling == "none" else look.filling,
        "markerfacecolor": "white" if look.filling == "none" else look.colour,
        "markerfacecoloralt": "white",
        "markeredgewidth": 0.8,
    }


def _line(axes: Axes, run: str, x: Any, y: Any, style: Style, n_lines: int) -> Line2D:
    scale = 1.0 if n_lines <= 6 else 0.8
    (line,) = axes.plot(
        x,
        y,
        linestyle=style.look(run).line,
        label=_name(run),
        markevery=max(len(x) // 16, 1),  # on a dense curve markers would run into one band
        markersize=scale * style.marker_size,
        **_mark(run, style) | {"markeredgewidth": 0.8 * scale},
    )
    return line


def _band(axes: Axes, over: pd.DataFrame, line: Line2D, n_lines: int) -> None:
    """Shade ``mean`` ± ``std`` around a line, the less the more lines there are."""
    if over["std"].notna().any():
        low, high = over["mean"] - over["std"], over["mean"] + over["std"]
        alpha = 0.18 * min(1.0, 4 / n_lines)
        axes.fill_between(over.index, low, high, color=line.get_color(), alpha=alpha, lw=0)


def _class_ticks(axes: Axes, classes: pd.DataFrame, every: int) -> None:
    names = classes["class_name"].to_list()
    shown = range(0, len(names), every)
    axes.set_yticks(list(shown), [_shorten(str(names[i])) for i in shown])


def _step_ticks(axes: Axes, steps: Sequence[int], room: float, style: Style) -> None:
    """Tick as many of ``steps`` as fit in ``room`` inches, at round distances."""
    needed = 1.75 * style.font_size / _POINTS_PER_INCH
    every = next((n for n in (1, 2, 5, 10, 20, 50) if needed * len(steps) <= n * room), 100)
    shown = range(0, len(steps), every)
    axes.set_xticks(list(shown), [str(steps[i]) for i in shown])


def _shorten(name: str, length: int = 18) -> str:
    return name if len(name) <= length else f"{name[: length - 1].rstrip()}…"


def _colour_bar(figure: Figure, image: Any, axes: Axes, label: str) -> Colorbar:
    bar = figure.colorbar(image, ax=axes, fraction=0.05, pad=0.02, label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(
        labelsize=mpl.rcParams["ytick.labelsize"],
        labelfontfamily=mpl.rcParams["font.family"][0],
        length=2,
    )
    return bar


def _legend_below(
    figure: Figure, handles: Sequence[Artist], style: Style, short: bool = False
) -> None:
    """Put a legend under the figure, in as many columns as fit, and let the figure grow by it."""
    legend: Legend | None = None
    for columns in range(min(len(handles), 6), 0, -1):
        if legend is not None:
            legend.remove()
        legend = figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=columns,
            borderaxespad=0,
            **({"handlelength": 1.2} if short else {}),
        )
        if legend.get_window_extent().width <= figure.bbox.width:
            break
    if legend is not None:
        height = legend.get_window_extent().height / figure.dpi
        figure.set_size_inches(style.width, figure.get_size_inches()[1] + height)


def _one_scenario(tidy: pd.DataFrame) -> None:
    if tidy.empty:
        raise CissError("there are no results to draw")
    if len(tidy[["dataset", "scenario"]].drop_duplicates()) != 1:
        raise ValueError("a figure shows one dataset and scenario")
