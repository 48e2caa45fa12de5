"""Write docs/settings.md from the settings' own models: `python scripts/settings_md.py`."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from pydantic import BaseModel  # noqa: E402

from pipeline.entries.command_line.table import ENTRY_POINTS  # noqa: E402
from pipeline.settings.cluster import ClusterSettings  # noqa: E402
from pipeline.settings.describe import RUN_GROUPS, default_in_words, meaning  # noqa: E402
from pipeline.settings.entry import CommandSettings  # noqa: E402
from pipeline.settings.layers import PRESETS_DIR, flatten, preset_names  # noqa: E402
from pipeline.settings.run import TrainSettings  # noqa: E402
from pipeline.settings.thresholds import Thresholds  # noqa: E402
from pipeline.system.disk.yaml_file import read_yaml  # noqa: E402

HEAD = """# Settings

Written by `scripts/settings_md.py` from the models in `pipeline/settings/`. A setting is passed as
`-P name=value` under `mlflow run`, as `--name value` to `python -m pipeline`, or stands in a YAML
file (`config=`). `python -m pipeline <entry point> --help` lists the settings that have an effect
on an entry point.
"""
OTHERWISE = (
    "What holds in single entry points where a setting is not given, in place of the above."
)
SILENT = (
    "Entry points take these settings, so that all stages can be given the same options, and do "
    "not use them. The last line of `--help` names them, too."
)
NOTES: dict[type[BaseModel], str] = {
    TrainSettings: "`stage2.` before a name gives stage 2 alone a value: `stage2.lr=1e-4`.\n"
    "In `main`, `decide`, `compare` and `tune` a plain name is for every stage.\n"
    "In `stage1`, `stage2`, `stage3`, `stage` and `tune -P stage=3` a plain name is for the named "
    "stage alone.\nEarlier stages are trained where no finished run is found, with the preset's "
    "values or their own (`stage1.epochs=2`); a line says so where these differ.",
    Thresholds: "Thresholds say how finished epochs are read, and never change weights. "
    "`enforce_gate=on` alone stops a command.",
}


def groups() -> Iterable[tuple[str, type[BaseModel]]]:
    """Every table of the page: its title, and the model of its settings."""
    *groups, thresholds = RUN_GROUPS
    yield from ((f"{title[0].upper()}{title[1:]}", model) for title, model in groups)
    own = [row.own for row in ENTRY_POINTS.values() if row.own]
    bases = [[base for base in model.__bases__ if base.__annotations__] for model in own]
    models = dict.fromkeys(
        m for model, above in zip(own, bases, strict=True) for m in (*above, model)
    )
    models.pop(ClusterSettings)  # of three entry points
    for model in models:
        rows = [row for row in ENTRY_POINTS.values() if row.own and issubclass(row.own, model)]
        offering = [row for row in rows if set(model.model_fields) <= set(row.offered)]
        yield ", ".join(f"`{row.name}`" for row in offering), model
    studies = [f"`{row.name}`" for row in ENTRY_POINTS.values() if row.shared]
    yield f"Studies, in {', '.join(studies)}", CommandSettings
    rows = [row for row in ENTRY_POINTS.values() if "cluster" in row.offered]
    tasks = ", ".join(f"`{row.name}`" for row in rows)
    yield f"[Where tasks run](cluster.md), in {tasks}", ClusterSettings
    yield "Thresholds of signals and of the gate", thresholds[1]


def table_of(model: type[BaseModel]) -> list[str]:
    """A row a setting: name, default, meaning with its choices."""
    own = [row.defaults for row in ENTRY_POINTS.values() if row.own and issubclass(row.own, model)]
    given = {key: text for defaults in own for key, text in defaults.items()}
    return ["| setting | default | what it is |", "|---|---|---|"] + [
        f"| `{key}` | {given.get(key, default_in_words(key, model))} | {meaning(key, model)} |"
        for key in model.__annotations__  # not those of a model that it is a case of
    ]


def other_defaults() -> Iterable[str]:
    """A row for the settings that have one default in an entry point, and another above."""
    for row in ENTRY_POINTS.values():
        own = row.own.model_fields if row.own else {}
        alike: dict[str, list[str]] = {}
        for key, text in row.defaults.items():
            if key not in own:
                alike.setdefault(text, []).append(f"`{key}`")
        yield from (f"| `{row.name}` | {', '.join(keys)} | {t} |" for t, keys in alike.items())


def _as_typed(key: str, value: object) -> str:
    """`lr=0.0003`, and for which stages where the preset says so."""
    name, _, where = key.partition(".")
    return " ".join(filter(None, (f"`{name}={value}`", where)))


def settings_md() -> str:
    """The whole page."""
    lines = [HEAD]
    for title, model in groups():
        note = [f"{NOTES[model]}\n"] if model in NOTES else []
        lines += [f"## {title}\n", *note, *table_of(model), ""]
    lines += [
        "## Other defaults\n",
        f"{OTHERWISE}\n",
        "| entry point | settings | default |",
        "|---|---|---|",
        *other_defaults(),
        "",
        "## Settings without an effect\n",
        f"{SILENT}\n",
        "| entry point | settings |",
        "|---|---|",
    ]
    silent = {
        row.name: ", ".join(f"`{key}`" for key in row.silent) for row in ENTRY_POINTS.values()
    }
    lines += [f"| `{name}` | {names} |" for name, names in silent.items() if names] + [""]
    lines.append("## Presets\n")
    for name in preset_names():
        path = PRESETS_DIR / f"{name}.yaml"
        about = path.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
        values = flatten(read_yaml(path, "preset")).items()
        lines.append(f"- **{name}**: {about} {', '.join(_as_typed(*each) for each in values)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_md(), encoding="utf-8")
