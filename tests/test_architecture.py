"""The diagram of the packages is what the imports are; the example of the API runs."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "pipeline", "flows", "infra", "benchmarks")


def imported(path: Path) -> Iterator[str]:
    """Top-level packages that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


@cache
def edges() -> frozenset[tuple[str, str]]:
    """Which package imports which, of all files."""
    return frozenset(
        (package, other)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for other in imported(path)
        if other in (*PACKAGES, "tests") and other != package
    )


def test_imports_run_one_way() -> None:
    """Whatever the diagram says."""
    allowed = {"model": set(), "pipeline": {"model"}, "flows": {"pipeline", "model"}}
    for package, below in allowed.items():
        assert {other for importer, other in edges() if importer == package} <= below, package
    assert not {importer for importer, other in edges() if other in ("flows", "tests")}


def test_packages_import_as_the_diagram_says() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    [diagram] = re.findall(r"```mermaid\nflowchart TD\n(.*?)```", text, re.DOTALL)
    drawn = set(re.findall(r'^\s*(\w+)(?:\[".*?"\])? --> (\w+)', diagram, re.MULTILINE))
    assert edges() == drawn


def test_steps_of_a_run_are_modules() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    steps = re.findall(r'(\w+)\["', text.split("flowchart LR")[1].split("```")[0])
    named = {f"pipeline/{step}.py" for step in steps} | set(re.findall(r"`(\w+/[\w/.]+)`", text))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert len(steps) == 8 and not missing


def test_the_example_of_the_api_runs() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(example, "docs/api.md", "exec"), {})
