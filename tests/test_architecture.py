"""The house keeps its floors: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "inpaint_dist").rglob("*.py"))
TOOLS = sorted((ROOT / "tools").glob("*.py"))
assert len(PACKAGE) > 30
assert len(TOOLS) == 5


def test_imports_go_down_and_libraries_stay_in_their_rooms():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as main; main()"]
    done = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 kept, 0 broken" in done.stdout


def test_there_are_no_circles_among_modules():
    import grimp

    graph = grimp.build_graph("inpaint_dist")
    circles = [
        (a, b)
        for a in graph.modules
        for b in graph.find_modules_directly_imported_by(a)
        if graph.chain_exists(importer=b, imported=a)
    ]
    assert circles == []


@pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_stay_readable_at_one_sitting(path: Path):
    text = path.read_text()
    assert text.count("\n") <= 400
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert [f.name for f in functions if (f.end_lineno or 0) - f.lineno > 80] == []
    assert path.stem not in {"utils", "misc", "helpers", "common"}


@pytest.mark.parametrize("path", TOOLS, ids=lambda path: path.name)
def test_a_tool_is_a_door_whose_help_needs_no_torch_and_no_install(path: Path, tmp_path: Path):
    assert len(path.read_text().splitlines()) <= 30
    code = (
        f"import runpy, sys; sys.argv = [{str(path)!r}, '--help']\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as ended: assert not ended.code, ended.code\n"
        "heavy = {'torch', 'matplotlib', 'wandb', 'webdataset', 'accelerate', 'torchmetrics'} & set(sys.modules)\n"
        "raise SystemExit(', '.join(sorted(heavy)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.name in done.stdout
