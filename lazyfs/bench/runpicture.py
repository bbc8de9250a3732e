"""A run as a picture: how it began, what each pass read from where, and the hottest directories.

Draws with the Agg backend into a file; needs no display, only matplotlib (see `bench.picture.check_can_draw`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfs.bench.picture import INK, PALE
from lazyfs.core.units import format_duration, format_size

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Report = Mapping[str, Any]

TIERS = (
    ("s3", "#b3261e"),
    ("shared", "#8a5a9e"),
    ("disk", "#c9820a"),
    ("spool", "#7d8b99"),
    ("memory", "#2f6f9f"),
)
MOST_PASSES = 8
NAME_LETTERS = 34


def draw(report: Report, *, file: Path) -> None:
    """Write the picture to `file`, a PNG of 1,800 pixels' width."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - optional, and slow to import
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(10, 7.6), dpi=180, facecolor="white")
    FigureCanvasAgg(figure)
    figure.text(
        0.02, 0.955, _plain(f"{report['bucket']} at {report['mountpoint']}"), fontsize=14, fontweight="bold", color=INK
    )
    figure.text(0.02, 0.92, _subtitle(report), fontsize=8.5, color=PALE, va="top", linespacing=1.4)
    _beginning(figure.add_axes((0.25, 0.70, 0.66, 0.13)), report)
    _passes(figure.add_axes((0.25, 0.40, 0.66, 0.19)), report["passes"])
    _directories(figure.add_axes((0.25, 0.07, 0.66, 0.24)), report["directories"]["hottest"])
    figure.savefig(file, format="png")


def _subtitle(report: Report) -> str:
    waits, files = report["waits"], report["files"]
    return (
        f"{format_duration(report['elapsed_s'])} since {'the mount' if report['since'] == 'mount' else 'the reset'}; "
        f"in {format_duration(waits['anybody_s'])} of them a reader waited for data\n"
        f"{waits['all']['count']:,} reads waited: half within {format_duration(waits['all']['p50_s'])}, "
        f"99 of 100 within {format_duration(waits['all']['p99_s'])}; "
        f"{files['never_opened']:,} of {files['listed']:,} files were never opened"
    )


def _beginning(axes: Axes, report: Report) -> None:
    beginning, file_mode = report["beginning"], report["file_mode"]
    opened = beginning["first_open_s"]
    times = [
        ("first byte", _after(beginning["first_byte_s"], opened), "#2f6f9f"),
        ("first batch", _after(beginning["first_batch_s"], opened), "#2f6f9f"),
        ("File mode, what was opened", file_mode["opened_s"], "#c9820a"),
        ("File mode, everything", file_mode["listed_s"], "#c9820a"),
    ]
    _bars(
        axes, [(name, value or 0.0, "not yet" if value is None else format_duration(value)) for name, value, _ in times]
    )
    for bar, (_, _, colour) in zip(axes.patches, times, strict=True):
        bar.set_color(colour)
    axes.set_title("seconds until training can begin, from the first open", fontsize=9.5, color=INK, loc="left")


def _passes(axes: Axes, passes: Sequence[Report]) -> None:
    shown = [one for one in passes if one["pass"]][:MOST_PASSES]
    left = [0.0] * len(shown)
    for tier, colour in TIERS:
        widths = [one["bytes"].get(tier, 0) for one in shown]
        if any(widths):
            axes.barh(range(len(shown)), widths, left=left, height=0.66, color=colour, label=tier, linewidth=0)
        left = [start + width for start, width in zip(left, widths, strict=True)]
    unseen = [max(0.0, one["file_bytes"] - read) for one, read in zip(shown, left, strict=True)]
    if any(unseen):
        told = "page cache, or not read"
        axes.barh(range(len(shown)), unseen, left=left, height=0.66, color="#d0d7de", label=told, linewidth=0)
    longest = max([start + rest for start, rest in zip(left, unseen, strict=True)], default=0.0)
    _frame(axes, [f"pass {one['pass']}: {one['opens']:,} files" for one in shown], longest)
    axes.set_title("bytes by pass and tier", fontsize=9.5, color=INK, loc="left")
    if axes.patches:
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=6, frameon=False, fontsize=8, labelcolor=INK)
    axes.xaxis.set_major_formatter(lambda value, _at: format_size(value))
    axes.tick_params(axis="x", bottom=False, labelbottom=True, labelsize=8, colors=PALE)
    axes.locator_params(axis="x", nbins=5)


def _directories(axes: Axes, hottest: Sequence[Report]) -> None:
    _bars(axes, [(_ending(row["path"] or "."), float(row["bytes"]), format_size(row["bytes"])) for row in hottest])
    axes.set_title("bytes read, by directory", fontsize=9.5, color=INK, loc="left")


def _bars(axes: Axes, rows: Sequence[tuple[str, float, str]]) -> None:
    axes.barh(range(len(rows)), [value for _, value, _ in rows], height=0.66, color="#2f6f9f", linewidth=0)
    longest = max((value for _, value, _ in rows), default=0.0)
    for row, (_, value, told) in enumerate(rows):
        axes.text(value + longest * 0.01, row, told, va="center", fontsize=8.5, color=INK)
    _frame(axes, [_plain(name) for name, _, _ in rows], longest)


def _frame(axes: Axes, names: Sequence[str], longest: float) -> None:
    axes.set_yticks(range(len(names)), names, fontsize=8.5, color=INK)
    axes.set_ylim(max(len(names), 2) - 0.5, -0.5)
    axes.set_xlim(0, longest or 1.0)
    axes.tick_params(axis="x", bottom=False, labelbottom=False)
    axes.tick_params(axis="y", length=0)
    for side in axes.spines.values():
        side.set_visible(False)


def _after(at_s: float | None, opened_s: float | None) -> float | None:
    return None if at_s is None or opened_s is None else at_s - opened_s


def _ending(path: str) -> str:
    return path if len(path) <= NAME_LETTERS else "…" + path[1 - NAME_LETTERS :]


def _plain(text: str) -> str:
    """As it stands: a dollar would begin a formula, and what no font has would warn."""
    return "".join(letter if " " <= letter <= "~" or letter == "…" else "?" for letter in text).replace("$", r"\$")
