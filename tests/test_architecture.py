"""The house's rules: who may import whom, what may be imported when, how long a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pipeline"
ORDER = [
    "errors",
    "plain_text",
    "interrupts",
    "design",
    "posterior",
    "verdict",
    "operating",
    "files",
    "stages",
    "settings",
    "entry_settings",
    "config",
    "digests",
    "data",
    "data.images",
    "data.stored",
    "data.source",
    "data.listing",
    "data.layout",
    "data.image_folder",
    "data.labels",
    "data.columns",
    "data.parquet",
    "data.sources",
    "data.draws",
    "data.overlap",
    "data.augment",
    "backbones",
    "weights.state_files",
    "weights.fitting",
    "weights.published",
    "weights",
    "command_line",
    "small_conv",
    "compute",
    "peak_memory",
    "norm_stats",
    "norm_choice",
    "freezing",
    "operations",
    "features",
    "owners",
    "prefix_cache",
    "master_weights",
    "risks",
    "block_ranks",
    "training",
    "checkpoints",
    "signals",
    "gate",
    "figures",
    "report",
    "page",
    "provenance",
    "search_space",
    "arms",
    "grid",
    "plans",
    "options",
    "addresses",
    "databases",
    "tracking.faults",
    "tracking.address",
    "tracking.experiment",
    "tracking.launched",
    "tracking.run",
    "tracking.registry",
    "tracking.store",
    "tracking",
    "lineage",
    "evidence",
    "gate_report",
    "run_log",
    "session",
    "run_stage",
    "gate_entry",
    "tuning",
    "tuning.journal",
    "tuning.storage",
    "tuning.trials",
    "tuning.study",
    "tuning.tuned",
    "entry_points",
    "workers",
    "tuning.trial",
    "tuning.mirror",
    "tuning.choice",
    "tuning.report",
    "tuning.tune",
    "tuning.arms",
    "evaluate",
    "estimate",
    "pool",
    "pairs",
    "decision",
    "decision_marks",
    "reproduce",
    "decision_report",
    "decide",
    "compared",
    "compare_report",
    "compare",
    "ranking",
    "pretrain",
    "served_model",
    "cli",
    "__main__",
]
MAX_LINES = 320


def module_name(path: Path) -> str:
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {
    module_name(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"
}


def imports_of(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_order_names_every_module_once() -> None:
    assert sorted(ORDER) == sorted(MODULES)


@pytest.mark.parametrize("name", ORDER)
def test_a_module_imports_only_from_rows_above_it(name: str) -> None:
    ours = {
        i.removeprefix("pipeline.") for i in imports_of(MODULES[name]) if i.startswith("pipeline.")
    }
    assert ours <= set(ORDER[: ORDER.index(name)])


@pytest.mark.parametrize("name", ORDER)
def test_mlflow_is_imported_by_tracking_and_the_served_model_alone(name: str) -> None:
    uses = any(module.split(".")[0] == "mlflow" for module in imports_of(MODULES[name]))
    assert uses == (name.startswith("tracking.") or name == "served_model")


@pytest.mark.parametrize("name", ORDER)
def test_files_stay_short(name: str) -> None:
    assert len(MODULES[name].read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@pytest.mark.parametrize(
    "words",
    [["--help"], ["stage3", "--help"], ["stage3", "--lrr", "1"], ["main", "--epochs", "x"]],
)
def test_help_and_faults_answer_before_torch_and_mlflow_are_imported(words: list[str]) -> None:
    code = (
        "import sys\n"
        "from pipeline.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'mlflow', 'numpy', 'pandas') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"
