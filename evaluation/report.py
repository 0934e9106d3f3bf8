"""Tables of results: for the terminal, as Markdown and as JSON."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from evaluation.runner import MethodResult
from evaluation.scoring import COLUMNS

Cell = str


@dataclass(frozen=True)
class Table:
    """A table as it is shown. notes: what must be read with it."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    bold: frozenset[tuple[int, int]] = field(default_factory=frozenset)  # (row, column): the best

    def show(self, console: Console) -> None:
        """Prints the table whole: a narrow terminal wraps its lines rather than lose digits."""
        table = RichTable(title=self.title, title_justify="left", title_style="bold")
        for name in self.header:
            table.add_column(name, no_wrap=True)
        for i, row in enumerate(self.rows):
            table.add_row(*(f"[bold]{cell}[/bold]" if (i, j) in self.bold else cell for j, cell in enumerate(row)))
        needed = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
        if needed > console.width:
            console = Console(file=console.file, width=needed)
        console.print(table)
        for note in self.notes:
            console.print(note, style="dim", highlight=False)

    def markdown(self) -> str:
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.header) + " |", "|" + "---|" * len(self.header)]
        for i, row in enumerate(self.rows):
            cells = (f"**{cell}**" if (i, j) in self.bold and cell else cell for j, cell in enumerate(row))
            lines.append("| " + " | ".join(cells) + " |")
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)]).rstrip() + "\n"


def compare(title: str, results: Sequence[MethodResult], notes: Sequence[str] = ()) -> Table:
    """One row per method, one column per score that any of them has; the best of each column is bold."""
    names = [name for name in COLUMNS if any(name in result.mean for result in results)]
    rows = [(result.method.name, *(show(result.mean, name) for name in names)) for result in results]
    bold = set()
    for column, name in enumerate(names, start=1):
        better = COLUMNS[name].better
        values = {i: better * result.mean[name] for i, result in enumerate(results) if name in result.mean}
        bold |= {(i, column) for i, value in values.items() if better and value == max(values.values())}
    header = ("method", *(COLUMNS[name].title for name in names))
    return Table(title, header, tuple(rows), tuple(notes), frozenset(bold) if len(results) > 1 else frozenset())


def show(scores: Mapping[str, float], name: str, missing: str = "") -> str:
    if name not in scores:
        return missing
    return f"{scores[name]:.{COLUMNS[name].digits}f}"


def machine() -> dict[str, Any]:
    """What figures of speed and memory depend on."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "system": platform.platform(),
        "processor": processor(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def results_json(sets: Mapping[str, Sequence[MethodResult]], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Means and rows of every method on every set, with the machine they were measured on."""
    return {
        "machine": machine(),
        **extra,
        "sets": {
            name: {
                result.method.name: {"images": len(result.rows), "mean": result.mean, "rows": result.rows}
                for result in results
            }
            for name, results in sets.items()
        },
    }


def to_json(value: Any) -> str:
    """JSON text; what is not finite, which JSON cannot say, becomes null."""
    return json.dumps(finite(value), indent=1) + "\n"


def finite(value: Any) -> Any:
    if isinstance(value, float):  # NumPy's float64 is one
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value
