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
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# A block, and what it prints where the page says so.
EXAMPLE = re.compile(r"```python\n(.*?)```(?:\n+prints\n+```text\n(.*?)```)?", re.DOTALL)
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*/results.json"))
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def _name(path):
    return path.relative_to(ROOT).as_posix()


def _program(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
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
    page = _program("build_api").page()
    assert (ROOT / "docs" / "api.md").read_text() == page, "run python docs/build_api.py"


def test_the_drawings_are_current():
    drawn = _program("draw").drawings()
    found = {file.name: file.read_text() for file in (ROOT / "docs" / "drawings").iterdir()}
    assert found == drawn, "run python docs/draw.py"
    shown = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    assert not [name for name in drawn if f"(drawings/{name})" not in shown]


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_python_blocks_run(path, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for block, printed in EXAMPLE.findall(path.read_text()):
        capsys.readouterr()
        exec(compile(block, str(path), "exec"), namespace)
        if printed:
            # Triton's interpreter, which is on in tests, has nothing to refuse.
            found, printed = (
                re.sub(r" *not triton: .*\n", "", text)
                for text in (capsys.readouterr().out, printed)
            )
            assert doctest.OutputChecker().check_output(printed, found, OPTIONS), found


def test_the_site_lists_every_page():
    listed = re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages)


@pytest.mark.parametrize("path", PAGES, ids=_name)
def test_links_to_files_exist(path):
    prose = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", prose):
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
