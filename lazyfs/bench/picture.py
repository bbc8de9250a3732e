"""The comparison as a picture: a bar a mode, from the start of the job to its last batch.

Draws with the Agg backend into a file; needs no display. Only this file and `runpicture` say matplotlib.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.bench.modes import FILE, Outcome
from lazyfs.core.errors import StartupError
from lazyfs.core.units import format_duration

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE = "The same training, three ways to its data"
PARTS = (
    ("start: download or mount, and the first batch", "#c9820a", "white"),
    ("stall: the accelerator waits for data", "#b3261e", "white"),
    ("compute", "#2f6f9f", "white"),
)
INK, PALE = "#24292f", "#57606a"
WIDE_ENOUGH = 0.055
"""The share of the axis below which a part has no room for its number."""


def check_can_draw() -> None:
    """StartupError with the remedy unless matplotlib is there."""
    if importlib.util.find_spec("matplotlib") is None:
        raise StartupError("matplotlib is needed to draw a picture: pip install 'lazyfs[bench]'")


def draw(outcomes: Sequence[Outcome], *, subtitle: str, file: Path) -> None:
    """Write the picture to `file`, a PNG of 1,800 pixels' width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 2.2 + 0.62 * len(outcomes)), dpi=180, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.165, 0.145, 0.705, 0.54))
    _bars(axes, outcomes)
    _frame(axes, outcomes)
    figure.text(0.02, 0.925, TITLE, fontsize=14, fontweight="bold", color=INK)
    figure.text(0.02, 0.89, subtitle, fontsize=8.5, color=PALE, va="top", linespacing=1.4)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="upper left", bbox_to_anchor=(0.012, 0.805), ncols=len(PARTS),
        frameon=False, fontsize=9, handlelength=1.1, handleheight=1.0, columnspacing=1.6, labelcolor=INK,
    )  # fmt: skip
    figure.savefig(file, format="png")


def _bars(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    longest = max(outcome.timeline.total_s for outcome in outcomes)
    left = [0.0] * len(outcomes)
    for at, (label, colour, ink) in enumerate(PARTS):
        widths = [_parts(outcome)[at] for outcome in outcomes]
        axes.barh(range(len(outcomes)), widths, left=left, height=0.62, color=colour, label=label, linewidth=0)
        for row, width in enumerate(widths):
            if width >= WIDE_ENOUGH * longest:
                place = (left[row] + width / 2, row)
                axes.text(*place, format_duration(width), ha="center", va="center", color=ink, fontsize=9.5)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, outcome in enumerate(outcomes):
        told = f"{format_duration(outcome.timeline.total_s)}\n{outcome.timeline.utilisation:.0%} busy"
        axes.text(
            outcome.timeline.total_s + longest * 0.012,
            row,
            told,
            va="center",
            fontsize=9.5,
            color=INK,
            linespacing=1.25,
        )


def _parts(outcome: Outcome) -> tuple[float, float, float]:
    timeline = outcome.timeline
    return timeline.first_batch_s, timeline.stall_s, timeline.compute_s


def _frame(axes: Axes, outcomes: Sequence[Outcome]) -> None:
    axes.set_yticks(range(len(outcomes)), [_label(outcome) for outcome in outcomes], fontsize=10, color=INK)
    axes.invert_yaxis()
    axes.set_xlim(0, max(outcome.timeline.total_s for outcome in outcomes))
    axes.set_xlabel(
        "seconds since the job was started; busy: the share of them in which the accelerator computes",
        fontsize=9,
        color=PALE,
    )
    axes.tick_params(axis="x", labelsize=8.5, colors=PALE)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.grid(visible=True, color="#d0d7de", linewidth=0.7)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#d0d7de")


def _label(outcome: Outcome) -> str:
    if outcome.mode == FILE:
        return f"{FILE}\ndownload, then train"
    return outcome.mode.replace(", ", "\n")
