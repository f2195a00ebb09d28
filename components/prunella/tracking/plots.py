"""The report's pictures, as SVG text to put inline: pure functions of a history, the same for the same ledger.

Matplotlib without pyplot, so that no state and no display is involved. Text stays text and takes the page's font. A picture
that has nothing to show is None.
"""

import io
import math
import re

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from prunella.records import EvaluationRecord, Part, StepRecord
from prunella.tracking.history import History
from prunella.tracking.incidents import IncidentStory
from prunella.tracking.time_accounting import TimeAccount

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
ACCENT, SUPERSEDED, ALARM = "#0b6e4f", "#b8c0c8", "#c2410c"

#: One colour a part: green is progress, blues are the price of training, oranges and reds of healing, greys of waiting.
PART_COLOURS = {
    Part.PRODUCTIVE: "#0b6e4f",
    Part.INITIALISATION: "#5b8db8",
    Part.DATA_PREPARATION: "#8fb8de",
    Part.DATA_WAIT: "#b5d3ec",
    Part.CHECKPOINT_STALL: "#3d6a94",
    Part.GATE: "#7a6fb0",
    Part.VALIDATION: "#a59bd4",
    Part.LOST_PROGRESS: "#b42318",
    Part.DETECTION: "#e5663f",
    Part.DECISION: "#f2a65a",
    Part.TEARDOWN: "#d98e73",
    Part.ACQUISITION: "#f6c65b",
    Part.LOAD: "#27496d",
    Part.FIRST_STEP: "#6fae9a",
    Part.EVALUATION: "#caa8d8",
    Part.ORCHESTRATION: "#9aa5b1",
    Part.PAUSED: "#eceff2",
    Part.UNKNOWN: "#52606d",
}

#: Columns of the heat map at most, so that a page of a long experiment stays small.
_HEAT_COLUMNS = 160
#: Rows of the heat map at most: the busiest layers of a large model say enough.
_HEAT_ROWS = 512

#: Slots of the timeline: about one a pixel.
_TIMELINE_SLOTS = 1000
#: Points of a curve at most; a longer series is thinned evenly, its last point always shown.
_CURVE_POINTS = 4000

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "prunella",
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def loss_curve(history: History, told: tuple[IncidentStory, ...]) -> str | None:
    """Loss by global step: kept steps as a line, superseded ones grey, incidents as numbered marks."""
    kept = _thinned([record for record in history.kept_steps if math.isfinite(record.loss_nats)])
    if not kept:
        return None
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 3.6), layout="constrained")
        axes = figure.subplots()
        _draw_superseded(axes, history)
        axes.plot([r.step for r in kept], [r.loss_nats for r in kept], color=ACCENT, linewidth=1.8, label="kept steps")
        _draw_incidents(axes, told)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("loss (nats a token)")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper right", facecolor="white", edgecolor="none", framealpha=1.0)
        return _svg(figure, "Loss by optimizer step")


def _thinned(records: list[StepRecord]) -> list[StepRecord]:
    stride = math.ceil(len(records) / _CURVE_POINTS) or 1
    return records[::-stride][::-1]


def _draw_superseded(axes: Axes, history: History) -> None:
    lost = _thinned([s.record for s in history.steps if not s.is_kept and math.isfinite(s.record.loss_nats)])
    if lost:
        steps, losses = [record.step for record in lost], [record.loss_nats for record in lost]
        axes.scatter(steps, losses, s=46, color=SUPERSEDED, edgecolors="none", label="superseded steps")


def _draw_incidents(axes: Axes, told: tuple[IncidentStory, ...]) -> None:
    by_step: dict[int, list[str]] = {}
    for number, story in enumerate(told, start=1):
        by_step.setdefault(story.after_step, []).append(str(number))
    for step, numbers in by_step.items():
        axes.axvline(step + 0.5, color=ALARM, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            ", ".join(numbers),
            xy=(step + 0.5, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="center",
            color=ALARM,
            fontweight="bold",
        )


def expert_load(history: History) -> str | None:
    """Tokens of each expert over its layer's mean, by step: 1 (white) is balanced."""
    records = [record for record in history.kept_steps if record.tokens_per_expert]
    columns = [_load_column(bucket) for bucket in _buckets(records)]
    if not columns:
        return None
    rows = list(zip(*columns, strict=True))[:_HEAT_ROWS]
    layers, experts = len(records[0].tokens_per_expert), max(len(layer) for layer in records[0].tokens_per_expert)
    top = max(1.01, *(value for row in rows for value in row))
    with rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(9.6, min(6.5, 1.3 + 0.11 * len(rows))), layout="constrained")
        axes = figure.subplots()
        extent = (records[0].step - 0.5, records[-1].step + 0.5, len(rows) - 0.5, -0.5)
        norm = TwoSlopeNorm(vmin=0.0, vcenter=1.0, vmax=top)
        image = axes.imshow(rows, aspect="auto", cmap="PuOr_r", norm=norm, extent=extent, interpolation="nearest")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel("layer")
        shown = range(min(layers, math.ceil(len(rows) / experts)))
        axes.set_yticks([layer * experts + (experts - 1) / 2 for layer in shown], [str(layer) for layer in shown])
        for layer in shown[1:]:
            axes.axhline(layer * experts - 0.5, color="white", linewidth=1.5)
        figure.colorbar(image, ax=axes, label="load over mean", ticks=[0.0, 1.0, top], format="%.2f")
        return _svg(figure, "Expert load by layer and step")


def _buckets(records: list[StepRecord]) -> list[list[StepRecord]]:
    width = max(1, math.ceil(len(records) / _HEAT_COLUMNS))
    return [records[start : start + width] for start in range(0, len(records), width)]


def _load_column(bucket: list[StepRecord]) -> list[float]:
    """Load of every expert over the mean of its layer, summed over the steps of the bucket, layer by layer."""
    column: list[float] = []
    for layer in range(len(bucket[0].tokens_per_expert)):
        totals = [sum(counts) for counts in zip(*(record.tokens_per_expert[layer] for record in bucket), strict=True)]
        mean = sum(totals) / len(totals)
        column += [total / mean if mean else 0.0 for total in totals]
    return column


def accuracy(history: History) -> str | None:
    """Accuracy of each evaluated checkpoint with its 95% interval; the dashed line is chance."""
    tasks = sorted({score.task for evaluation in history.evaluations for score in evaluation.scores})
    if not tasks:
        return None
    with rc_context(_STYLE):
        figure = Figure(figsize=(9.6, 2.9), layout="constrained")
        axes = figure.subplots()
        colours = (ACCENT, "#3d6a94", "#7a6fb0", ALARM, "#caa8d8")
        for number, task in enumerate(tasks):
            _draw_task(axes, history.evaluations, task, colours[number % len(colours)])
        axes.set_xlabel("optimizer step of the checkpoint")
        axes.set_ylabel("accuracy")
        axes.set_ylim(0.0, 1.0)
        axes.set_xlim(left=0.0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, loc="upper left")
        return _svg(figure, "Accuracy by checkpoint")


def _draw_task(axes: Axes, evaluations: tuple[EvaluationRecord, ...], task: str, colour: str) -> None:
    scores = [(found.checkpoint.step, score) for found in evaluations for score in found.scores if score.task == task]
    steps, accs = [step for step, _ in scores], [score.acc for _, score in scores]
    below = [max(0.0, score.acc - score.ci95[0]) for _, score in scores]
    above = [max(0.0, score.ci95[-1] - score.acc) for _, score in scores]
    axes.errorbar(steps, accs, yerr=[below, above], color=colour, marker="o", capsize=4, linewidth=1.5, label=task)
    axes.axhline(scores[0][1].chance, color=colour, linestyle=(0, (4, 3)), linewidth=1)


def timeline(time: TimeAccount) -> str | None:
    """The whole elapsed time as one strip, coloured by part."""
    if not time.elapsed_ns:
        return None
    origin_ns = time.timeline[0].start_ns
    with rc_context(_STYLE | {"axes.grid": False, "axes.spines.left": False}):
        figure = Figure(figsize=(9.6, 1.1), layout="constrained")
        axes = figure.subplots()
        slots = _slots(time)
        for part in slots:
            spans = [((left - origin_ns) / 1e9, (right - left) / 1e9) for left, right in slots[part]]
            axes.broken_barh(spans, (0, 1), facecolors=PART_COLOURS[part], linewidth=0)
        axes.set_yticks([])
        axes.set_ylim(0, 1)
        axes.set_xlim(0, time.elapsed_ns / 1e9)
        axes.set_xlabel("seconds since the experiment was opened")
        return _svg(figure, "Timeline of the experiment")


def _slots(time: TimeAccount) -> dict[Part, list[tuple[int, int]]]:
    """The timeline at the resolution of a picture: each slot of time takes the part that fills most of it."""
    start_ns, width_ns = time.timeline[0].start_ns, max(1, time.elapsed_ns // _TIMELINE_SLOTS)
    filled: dict[int, dict[Part, int]] = {}
    for stretch in time.timeline:
        first, last = (stretch.start_ns - start_ns) // width_ns, (stretch.end_ns - 1 - start_ns) // width_ns
        for slot in range(first, last + 1):
            left_ns = start_ns + slot * width_ns
            overlap_ns = min(stretch.end_ns, left_ns + width_ns) - max(stretch.start_ns, left_ns)
            parts = filled.setdefault(slot, {})
            parts[stretch.part] = parts.get(stretch.part, 0) + overlap_ns
    slots: dict[Part, list[tuple[int, int]]] = {}
    for slot, parts in filled.items():
        part = max(parts, key=lambda part: parts[part])
        left_ns = start_ns + slot * width_ns
        spans = slots.setdefault(part, [])
        if spans and spans[-1][1] == left_ns:
            left_ns = spans.pop()[0]
        spans.append((left_ns, start_ns + (slot + 1) * width_ns))
    return slots


def _svg(figure: Figure, title: str) -> str:
    """The picture as an `<svg>` element that scales with the page, without the XML header around it."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub(r'<svg ([^>]*?)width="[^"]*" height="[^"]*"|<svg height="[^"]*" width="[^"]*"', r"<svg \1", text, count=1)
