"""The documentation is true: examples run, the API page is current, links lead somewhere."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import ginr_fast
from ginr_fast.commands.bench import markdown, read

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _builder():
    spec = importlib.util.spec_from_file_location("build_api", ROOT / "docs" / "build_api.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", sorted(ginr_fast.__all__))
def test_every_public_name_is_documented_and_its_examples_run(name):
    value = getattr(ginr_fast, name)
    assert inspect.getdoc(value)
    module = importlib.import_module(value.__module__)
    for found in doctest.DocTestFinder(recurse=True).find(value, name, module=module):
        runner = doctest.DocTestRunner(optionflags=OPTIONS)
        report: list[str] = []
        runner.run(found, out=report.append)
        assert runner.failures == 0, "".join(report)


def test_the_api_page_is_current():
    assert (ROOT / "docs" / "api.md").read_text() == _builder().page(), (
        "run python docs/build_api.py"
    )


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_blocks_run(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", path.read_text(), flags=re.DOTALL):
        exec(compile(block, str(path), "exec"), namespace)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_to_files_exist(path):
    for target in re.findall(r"\]\(([^)#\s]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_no_source_file_is_long():
    files = [*(ROOT / "ginr_fast").rglob("*.py"), *(ROOT / "csrc").rglob("*.*")]
    long = {str(f): n for f in files if (n := len(f.read_text().splitlines())) > 400}
    assert not long


@pytest.mark.parametrize("results", RESULTS, ids=lambda path: path.parent.name)
def test_the_performance_tables_come_from_the_committed_results(results):
    assert markdown(*read(results)) in (ROOT / "docs" / "performance.md").read_text(), (
        "run ginr-fast bench --json benchmarks/results/*/results.json "
        "--markdown docs/performance.md"
    )
