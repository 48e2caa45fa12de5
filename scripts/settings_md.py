"""Write docs/settings.md from the settings' own models: `python scripts/settings_md.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from pipeline.entries.table import ENTRY_POINTS  # noqa: E402
from pipeline.settings.entry import CommandSettings, TuneSettings  # noqa: E402
from pipeline.settings.layers import PRESETS_DIR, preset_names  # noqa: E402
from pipeline.settings.run import Settings, Thresholds, TrainSettings  # noqa: E402
from pipeline.system.yaml_file import read_yaml  # noqa: E402

HEAD = """# Settings

Written by `scripts/settings_md.py` from the models in `pipeline/`. Every setting is passed as
`-P name=value` under `mlflow run`, as `--name value` to `python -m pipeline`, or stands in a YAML
file (`config=`).
"""
GROUPS: tuple[tuple[str, str, type[BaseModel]], ...] = (
    ("How a stage is trained", "`stage2.lr` is stage 2's alone.", TrainSettings),
    ("What is run", "", Settings),
    ("`tune`", "Also the studies of `decide` and `compare`.", TuneSettings),
    ("Studies, wherever they are used", "", CommandSettings),
    *((f"`{row.name}`", "", row.own) for row in ENTRY_POINTS.values() if row.own),
    ("Thresholds of signals and the gate", "They read a run, and never change it.", Thresholds),
)


def table_of(model: type[BaseModel], left_out: set[str]) -> list[str]:
    """A row a setting: name, default, meaning with its choices."""
    rows = ["| setting | default | what it is |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        if name in left_out or name == "stages":
            continue
        words = {True: "on", False: "off", "": "empty"}
        default = field.default
        shown = words.get(default, default) if isinstance(default, bool | str) else default
        choices = ", ".join(f"`{c}`" for c in map(str, get_args(field.annotation)) if c)
        meaning = f"{field.description}{f': {choices}' if choices else ''}"
        rows.append(f"| `{name}` | {shown} | {meaning} |")
    return rows


def settings_md() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, note, model in GROUPS:
        left_out = set(Thresholds.model_fields) if model is Settings else set()
        lines += [
            f"## {title}\n",
            *([f"{note}\n"] if note else []),
            *table_of(model, left_out),
            "",
        ]
    lines.append("## Presets\n")
    for name in preset_names():
        path = PRESETS_DIR / f"{name}.yaml"
        about = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        values = ", ".join(f"`{k}={v}`" for k, v in read_yaml(path, "preset").items())
        lines.append(f"- **{name}**: {about} {values}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_md(), encoding="utf-8")
