"""The report's pictures as SVG text: matplotlib draws them, without a display and without anything from outside."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

from shopfloor.records import ColumnDrift, Confusion, Curve, Evaluation, Search, StepRecord

COLOURS = {
    "succeeded": "#2e9e5b",
    "cached": "#2a8fbd",
    "failed": "#d64545",
    "killed": "#d64545",
    "running": "#c9971c",
    "skipped": "#8a8f98",
    "pending": "#8a8f98",
}
INK = "#7d8590"
"""Legible on a light page and on a dark one."""
LINE_COLOURS = ("#2a8fbd", "#e07a1f")
"""The model's and the champion's."""
LEGIBLE_CLASSES = 20
"""Classes of a confusion matrix that can be named, and whose numbers can be read."""


def dag(steps: list[StepRecord], edges: list[tuple[str, str]]) -> str:
    """Return the DAG: a box for each step, in columns by its distance from the start."""
    depth = {step.name: 0 for step in steps}
    for _ in steps:
        for before, after in edges:
            if before in depth and after in depth:
                depth[after] = max(depth[after], depth[before] + 1)
    rows: dict[int, int] = {}
    place: dict[str, tuple[int, int]] = {}
    for step in steps:
        column = depth[step.name]
        place[step.name] = (column, rows.get(column, 0))
        rows[column] = rows.get(column, 0) + 1

    def draw(axes: Any) -> None:
        for before, after in edges:
            if before in place and after in place and depth[after] - depth[before] == 1:
                (x0, y0), (x1, y1) = place[before], place[after]
                axes.annotate(
                    "", (x1 - 0.42, -y1), (x0 + 0.42, -y0), arrowprops={"arrowstyle": "->", "color": INK, "lw": 1}
                )
        for step in steps:
            x, y = place[step.name]
            mark = f"{step.state} {step.seconds:.1f} s" if step.state not in {"pending", "skipped"} else step.state
            box = {"boxstyle": "round,pad=0.5", "facecolor": COLOURS[step.state], "edgecolor": "none"}
            axes.text(x, -y, f"{step.name}\n{mark}", ha="center", va="center", color="white", fontsize=7, bbox=box)
        axes.set_xlim(-0.6, max(depth.values(), default=0) + 0.6)
        axes.set_ylim(-max(rows.values(), default=1) + 0.4, 0.6)
        axes.axis("off")

    return _svg(draw, (1.25 * (max(depth.values(), default=0) + 1), 0.8 * max(rows.values(), default=1)), "The steps")


def parallel_coordinates(search: Search) -> str:
    """Return the trials as lines over the parameters and the metric, the best one thick."""
    names = sorted({name for trial in search.trials for name in trial.params})
    trials = [trial for trial in search.trials if search.metric in trial.metrics]
    columns = [[trial.params.get(name) for trial in trials] for name in names]
    columns.append([trial.metrics[search.metric] for trial in trials])

    def scaled(values: list[Any]) -> list[float]:
        if not all(isinstance(value, int | float) for value in values):
            levels = sorted({str(value) for value in values})
            values = [levels.index(str(value)) for value in values]
        low, high = min(values), max(values)
        return [(value - low) / (high - low) if high > low else 0.5 for value in values]

    def draw(axes: Any) -> None:
        from matplotlib import colormaps

        heights = [scaled(column) for column in columns]
        for number, trial in enumerate(trials):
            best = trial.trial_id == search.best_trial_id
            quality = heights[-1][number] if search.mode == "max" else 1 - heights[-1][number]
            axes.plot(
                range(len(columns)),
                [column[number] for column in heights],
                color="#e07a1f" if best else colormaps["viridis"](0.15 + 0.7 * quality),
                lw=3 if best else 1.2,
                alpha=1 if best else 0.75,
                zorder=2 if best else 1,
            )
        for number, column in enumerate(columns):
            axes.plot([number, number], [0, 1], color=INK, lw=0.8)
            numbers = [value for value in column if isinstance(value, int | float)]
            if len(numbers) == len(column):
                for height, value in ((-0.06, min(numbers)), (1.06, max(numbers))):
                    axes.text(number, height, f"{value:.4g}", ha="center", va="center", fontsize=7, color=INK)
        axes.set_xticks(range(len(columns)), [*names, search.metric], fontsize=8, rotation=12)
        axes.set_yticks([])
        axes.set_ylim(-0.12, 1.12)
        axes.spines[["left", "bottom"]].set_visible(False)

    return _svg(draw, (9, 3.4), "The search: one line a trial, the best one thick")


def curve(picture: Curve) -> str:
    """Return a picture of how the model predicts, beside the champion where there is one."""

    def draw(axes: Any) -> None:
        (left, right), (bottom, top) = _limits(picture)
        ends = (0.0, 0.0) if picture.reference == "zero" else (left, right)
        axes.plot([left, right], ends, color=INK, lw=0.8, ls="--")
        style = ("o" if picture.marks else "") + ("-" if picture.joined else "")
        size, alpha = (4, 1.0) if picture.joined else (3, 0.6)
        for line, color in zip(picture.lines, LINE_COLOURS, strict=False):
            axes.plot(
                *zip(*line.points, strict=True), style, color=color, lw=2, ms=size, alpha=alpha, label=_plain(line.name)
            )
        axes.set(xlabel=picture.x, ylabel=picture.y, xlim=(left, right), ylim=(bottom, top))
        axes.legend(fontsize=7, frameon=False)

    return _svg(draw, (4, 3.6), picture.title)


def confusion(matrix: Confusion) -> str:
    """Return the confusion matrix: the darker, the larger the part of what is truly of the row's class."""
    names = [_plain(str(one)) for one in matrix.classes]
    shares = [[count / (sum(row) or 1) for count in row] for row in matrix.counts]

    def draw(axes: Any) -> None:
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        if len(names) <= LEGIBLE_CLASSES:
            for true, row in enumerate(matrix.counts):
                for predicted, count in enumerate(row):
                    color = "white" if shares[true][predicted] > 0.5 else INK
                    axes.text(predicted, true, str(count), ha="center", va="center", fontsize=7, color=color)
        ticks = range(0, len(names), -(-len(names) // LEGIBLE_CLASSES))
        axes.set_xticks(ticks, [names[tick] for tick in ticks], fontsize=7, rotation=45)
        axes.set_yticks(ticks, [names[tick] for tick in ticks], fontsize=7)
        axes.set(xlabel="predicted", ylabel="true")

    return _svg(draw, (4.4, 4), "Confusion matrix, rows of the test set")


def _limits(picture: Curve) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the ends of both axes; where x is compared with y, both are the same."""
    across, up = ([point[axis] for line in picture.lines for point in line.points] for axis in (0, 1))
    if picture.within == "unit":
        top = max([1e-9, *across, *up])
        top = 1.0 if top > 0.5 else top * 1.1
        return (0.0, top), (0.0, top)
    if picture.reference == "diagonal":
        both = _span(across + up)
        return both, both
    return _span(across), _span([0.0, *up])


def _span(values: list[float]) -> tuple[float, float]:
    """Return the lowest and the highest value, with a margin."""
    low, high = min(values, default=0.0), max(values, default=1.0)
    margin = 0.05 * (high - low) or 0.5
    return low - margin, high + margin


def importance(evaluation: Evaluation) -> str:
    """Return the twenty most important features."""
    shares = list(evaluation.importance.items())[:20][::-1]

    def draw(axes: Any) -> None:
        axes.barh([_plain(name) for name, _ in shares], [share for _, share in shares], color="#2a8fbd")
        axes.set_xlabel("share of the total gain")
        axes.tick_params(axis="y", labelsize=8)

    return _svg(draw, (5.5, 0.24 * len(shares) + 0.8), "Feature importance")


def slices(evaluation: Evaluation, metric: str) -> str:
    """Return a metric by slice, the metric of all rows as a line."""
    rows = [item for item in evaluation.slices if metric in item.metrics][::-1]
    title = evaluation.titles.get(metric, metric)

    def draw(axes: Any) -> None:
        labels = [_plain(f"{item.column} = {item.value} ({item.rows})") for item in rows]
        axes.plot([item.metrics[metric] for item in rows], labels, "o", color=LINE_COLOURS[0])
        axes.axvline(evaluation.metrics[metric], color=INK, lw=0.8, ls="--")
        axes.set_xlabel(title)
        axes.locator_params(axis="x", nbins=6)
        axes.tick_params(axis="y", labelsize=8)

    return _svg(draw, (5.5, 0.22 * len(rows) + 0.8), f"{title} by slice (rows); dashed: all rows")


def drift(column: ColumnDrift) -> str:
    """Return the shares of a column's rows in each bin that either side has, of the test set and of the requests."""
    bins = [
        (name, reference, live)
        for name, reference, live in zip(column.bins, column.reference, column.live, strict=True)
        if reference or live
    ][::-1]

    def draw(axes: Any) -> None:
        places = range(len(bins))
        for offset, side, name in ((0.2, 1, "test set"), (-0.2, 2, f"{column.rows:,} rows")):
            shares = [100 * float(one[side]) for one in bins]
            axes.barh([place + offset for place in places], shares, 0.4, label=name, color=LINE_COLOURS[side - 1])
        axes.set_yticks(list(places), [_plain(name) for name, _, _ in bins])
        axes.tick_params(axis="y", labelsize=8)
        axes.set_xlabel("% of the rows")
        axes.legend(fontsize=8, frameon=False)

    return _svg(draw, (4.6, 0.28 * len(bins) + 1.0), f"{column.column}: test set and requests")


def _svg(draw: Callable[[Any], None], size: tuple[float, float], title: str) -> str:
    """Return one drawing as an SVG element that can be read aloud."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.fonttype": "none",
        "svg.hashsalt": title,
        "font.family": "sans-serif",
        "text.parse_math": False,
        **{name: INK for name in ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")},
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="tight")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    # matplotlib's own names of namespaces and licences are no part of a picture inside a page.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def _plain(text: str) -> str:
    """Return `text` without the control characters that no XML may hold."""
    return re.sub(r"[\x00-\x08\x0b-\x1f]", "?", text)
