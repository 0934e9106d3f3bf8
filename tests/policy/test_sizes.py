"""Files and functions stay small enough to be read in one go."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "service", "worker", "models", "training", "evaluation", "m3esr", "tests")
MAX_FILE_LINES = 350
MAX_FUNCTION_LINES = 60


def python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def long_functions(source: str) -> list[tuple[str, int]]:
    """Name and lines of each function beyond the limit; decorators and docstring count."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            num_lines = (node.end_lineno or first) - first + 1
            if num_lines > MAX_FUNCTION_LINES:
                found.append((node.name, num_lines))
    return found


def test_no_file_is_too_long():
    lengths = {path.relative_to(ROOT).as_posix(): len(path.read_text().splitlines()) for path in python_files()}
    assert lengths
    assert {place: lines for place, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_too_long():
    found = {path.relative_to(ROOT).as_posix(): long_functions(path.read_text()) for path in python_files()}
    assert {place: functions for place, functions in found.items() if functions} == {}


@pytest.mark.parametrize(("num_lines", "is_found"), [(MAX_FUNCTION_LINES, False), (MAX_FUNCTION_LINES + 1, True)])
def test_the_measure_counts_whole_functions(num_lines, is_found):
    source = "def f():\n" + "    pass\n" * (num_lines - 1)
    assert bool(long_functions(source)) == is_found
