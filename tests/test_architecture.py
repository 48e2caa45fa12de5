"""What the import contracts cannot say: how long files are, what comes first, who names what."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.tracking import keys

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pipeline"
MAX_LINES = 320
MAX_FUNCTION_LINES = 50
"""A screen: what is longer does more than one job."""
MAX_POSITIONAL_FIELDS = 3
"""Of more, nobody can tell at a call which value is which field, and neither can mypy where two
neighbours have one type."""


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {
    module_name(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
}


def test_files_stay_short() -> None:
    lengths = {n: len(p.read_text(encoding="utf-8").splitlines()) for n, p in MODULES.items()}
    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}


def odd_shapes(tree: ast.AST) -> Iterator[str]:
    """Functions that are too long, and dataclasses that take too many fields by position."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name) | ast.AsyncFunctionDef(name):
                lines = (node.end_lineno or 0) - node.lineno + 1
                if lines > MAX_FUNCTION_LINES:
                    yield f"{name} has {lines} lines, of at most {MAX_FUNCTION_LINES}: split it"
            case ast.ClassDef(name, decorator_list=decorators):
                written = [ast.unparse(decorator) for decorator in decorators]
                fields = [
                    line
                    for line in node.body
                    if isinstance(line, ast.AnnAssign)
                    and not ast.unparse(line.annotation).startswith("ClassVar")
                ]
                if len(fields) > MAX_POSITIONAL_FIELDS and any(
                    text.startswith("dataclass") and "kw_only=True" not in text for text in written
                ):
                    yield f"{name} has {len(fields)} fields: write @dataclass(kw_only=True)"


@pytest.mark.parametrize("name", MODULES)
def test_functions_fit_a_screen_and_larger_dataclasses_name_their_fields(name: str) -> None:
    assert not [*odd_shapes(ast.parse(MODULES[name].read_text(encoding="utf-8")))]


def test_a_long_function_and_a_large_positional_dataclass_are_found() -> None:
    fields = "".join(f"    f{number}: int\n" for number in range(MAX_POSITIONAL_FIELDS))
    small = f"class A:\n    kind: ClassVar[int] = 1\n{fields}"
    large = f"{small}    last: int\n"
    function = "def f():\n" + "    pass\n" * (MAX_FUNCTION_LINES - 1)
    for fine in (f"@dataclass\n{small}", f"@dataclass(kw_only=True)\n{large}", large, function):
        assert not [*odd_shapes(ast.parse(fine))]
    for odd in (
        f"@dataclass\n{large}",
        f"@dataclass(frozen=True)\n{large}",
        f"{function}    pass",
    ):
        assert [*odd_shapes(ast.parse(odd))]


def test_help_and_faults_answer_before_torch_and_mlflow_are_imported() -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "for words in sys.argv[1:]:\n"
        "    try: main(words.split())\n"
        "    except SystemExit: pass\n"
        "    slow = [m for m in ('torch', 'mlflow', 'numpy', 'pandas') if m in sys.modules]\n"
        "    print('imported:', words, slow)\n"
    )
    words = ["--help", "stage3 --help", "stage3 --lrr 1", "main --epochs x"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    told = [line for line in done.stdout.splitlines() if line.startswith("imported: ")]
    assert told == [f"imported: {one} []" for one in words]


def literals_in_the_store(tree: ast.AST) -> Iterator[str]:
    """Names of tags and metrics that are written out where they are read, or made once more."""
    known = {value for value in vars(keys).values() if isinstance(value, str)}
    for node in ast.walk(tree):
        found: list[ast.AST] = []
        match node:
            case ast.Subscript(ast.Attribute(attr="tags" | "metrics" | "params"), name):
                found = [name]
            case ast.Compare(name, [ast.In() | ast.NotIn()], [ast.Attribute(attr="tags")]):
                found = [name]
            case ast.Call(
                ast.Attribute(ast.Attribute(attr="tags" | "metrics" | "params"), "get"), [name, *_]
            ) | ast.Call(ast.Attribute(attr="number"), [name]):
                found = [name]
            case ast.Dict():
                found = [
                    name
                    for name in node.keys
                    if isinstance(name, ast.Constant)
                    and name.value in known
                    and set("./") & set(name.value)
                ]
            case ast.Call(ast.Attribute(attr="tags" | "metrics" | "find"), [ast.Dict() as names]):
                found = [n for n in names.keys if getattr(n, "value", None) in known]
        yield from (ast.unparse(name) for name in found if isinstance(name, ast.Constant))


def test_names_in_the_store_are_written_out_in_keys_alone() -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    del trees["tracking.keys"]
    found = {name: [*literals_in_the_store(tree)] for name, tree in trees.items()}
    assert {name: literals for name, literals in found.items() if literals} == {}


def test_a_name_in_the_store_that_is_written_out_is_found() -> None:
    lines = (
        *('run.tags["stage"]', 'run.metrics.get("selected/epoch", 0)', '"kind" in run.tags'),
        *('run.number("draw")', 'log.tags({"kind": "gate"})', '{"time/total_s": 1.0}'),
    )
    assert all([*literals_in_the_store(ast.parse(line))] for line in lines)
    assert not [*literals_in_the_store(ast.parse('log.tags({"preset": "none", KIND: "gate"})'))]


def test_files_that_are_stored_with_a_model_need_nothing_of_the_package() -> None:
    """A server runs them without it; what a file tries to import there has another place."""
    from pipeline.runs.stage_log import SERVED_HELPERS

    for path in SERVED_HELPERS:
        statements = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        names = [node.module for node in statements if isinstance(node, ast.ImportFrom)]
        assert not [name for name in names if name and name.startswith("pipeline")], path
