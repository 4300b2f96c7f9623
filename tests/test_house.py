"""The house's own measures: a file, a function, a folder is one idea, and what is written here says when it is not."""

import ast
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES, FUNCTION, PARAMETERS, FILES = 400, 60, 9, 15


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a checkout: what is tracked can't be told")
    return [Path(line) for line in listed.stdout.splitlines() if (ROOT / line).exists()]


def test_no_file_is_over_400_lines() -> None:
    long = {str(path): n for path in tracked() if (n := (ROOT / path).read_text("utf-8").count("\n")) > LINES}
    assert not long


def test_no_folder_holds_over_15_files() -> None:
    full = {str(folder): n for folder, n in Counter(path.parent for path in tracked()).items() if n > FILES}
    assert not full


def test_no_function_is_over_60_lines_or_takes_ten_parameters() -> None:
    long, many = {}, {}
    for path in tracked():
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                taken = len([*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs])
                if lines > FUNCTION:
                    long[f"{path}:{node.name}"] = lines
                if taken > PARAMETERS:
                    many[f"{path}:{node.name}"] = taken
    assert not long
    assert not many


def test_every_room_says_in_a_sentence_what_it_is_for() -> None:
    silent = [
        str(path)
        for path in tracked()
        if path.name == "__init__.py"
        and path.parts[0] in ("server", "client", "shared")
        and not ast.get_docstring(ast.parse((ROOT / path).read_text("utf-8")))
    ]
    assert not silent
