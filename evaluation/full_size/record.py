"""Sections of measurements that cannot stop one another: told, and written to a file, as they come. Free of torch."""

import json
import math
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

HEAD = f"{'':44} {'unit':>6} {'measured':>11} {'computed':>11} {'more':>8}"


class OutOfTimeError(Exception):
    """A section has spent its time."""


@dataclass(frozen=True)
class Row:
    """One figure. measured: NaN where it cannot be; computed: what was said of it before, if anything."""

    name: str
    unit: str
    measured: float
    computed: float | None = None
    note: str = ""

    @property
    def difference(self) -> float | None:
        """Measured beyond computed, as a share of computed."""
        return self.measured / self.computed - 1 if self.computed else None

    def line(self) -> str:
        computed = "-" if self.computed is None else digits(self.computed)
        difference = "-" if self.difference is None or math.isnan(self.difference) else f"{self.difference:+.1%}"
        return f"{self.name:44} {self.unit:>6} {digits(self.measured):>11} {computed:>11} {difference:>8}  {self.note}"

    def as_json(self) -> dict[str, Any]:
        values = asdict(self) | {"difference": self.difference}
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


def digits(value: float) -> str:
    if math.isnan(value):
        return "-"
    return f"{value:.3e}" if value and abs(value) < 1e-2 else f"{value:.3f}"


@dataclass(frozen=True)
class Deadline:
    """A moment of `time.monotonic` [s]."""

    end: float

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def check(self) -> None:
        """Raises OutOfTimeError after it."""
        if self.left < 0:
            raise OutOfTimeError("its time was spent")


@dataclass(frozen=True)
class Section:
    """budget, least [s]: what it may take, and with how little it is not begun."""

    name: str
    rows: Callable[[Deadline], Generator[Row, None, None]]
    budget: float
    least: float = 0.0


@dataclass
class Record:
    """What was found so far; rewritten to `path` after every figure."""

    path: Path
    about: dict[str, Any]
    tell: Callable[[str], None]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run(self, sections: Sequence[Section], end: float, clean_up: Callable[[], None]) -> bool:
        """All sections one after the other, none beyond `end` [s of time.monotonic]; False if one failed.

        clean_up: called after each, when nothing of it is referred to any more.
        """
        self.tell(HEAD)
        for section in sections:
            self.run_section(section, end)
            clean_up()
        return not any("error" in found for found in self.sections.values())

    def run_section(self, section: Section, end: float) -> None:
        found = self.sections[section.name] = {"rows": []}
        started = time.monotonic()
        self.tell(f"-- {section.name}")
        deadline = Deadline(min(started + section.budget, end))
        try:
            if deadline.left < section.least:
                raise OutOfTimeError(
                    f"not begun: {max(0.0, deadline.left):.0f} s are left of {section.least:.0f} needed"
                )
            with closing(section.rows(deadline)) as rows:
                for row in rows:
                    found["rows"].append(row.as_json())
                    self.tell(row.line())
                    self.write()
                    deadline.check()
        except Exception as error:
            found |= {"error": first_line(error), "traceback": traceback.format_exc().splitlines()}
            self.tell(f"   {found['error']}")
        found["seconds"] = round(time.monotonic() - started, 2)
        self.tell(f"   {found['seconds']} s")
        self.write()

    def write(self) -> None:
        text = json.dumps(self.about | {"sections": self.sections}, indent=1)
        self.path.write_text(text + "\n")


def first_line(error: Exception) -> str:
    """What happened and where, in one line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    words = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {words}"
