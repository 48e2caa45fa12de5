"""What tests of comparisons share: stores, the runs of a finished one, numbers by hand."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from mlflow.entities import Run
from scipy import stats
from scipy.stats.distributions import rv_frozen

from pipeline.comparing.compared import Compared
from pipeline.entries.command_line.table import perform
from tests.by_image import BothParts, differences
from tests.conftest import SMALL_NET, class_image, enter_store
from tests.reports import artifact
from tests.test_decide import CLASSES, Desk

NAME = SMALL_NET
OWN = {"epochs": "1", "draws": "2"}


def write_pool(root: Path) -> Path:
    """Three classes of 28 images each: 10 to test on, and three draws of 4 + 2."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(28):
            class_image(label, number).save(root / name / f"{number:02}.png")
    return root


def new_desk(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Desk:
    """An empty store, and images."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        enter_store(folder / "work", empty_database, patch)
    return Desk(folder / "work", write_pool(folder / "images"), [], [])


def compare(desk: Desk, stop_at: str | None = None, **options: str) -> Compared:
    """Entry point compare; Ctrl-C at the line that begins with `stop_at`."""

    def say(line: str) -> None:
        desk.said.append(line)
        desk.runs_then.append(desk.count_runs())
        if stop_at and line.startswith(stop_at):
            raise KeyboardInterrupt("stopped by the test")

    own = {**desk.own, **OWN}
    if "backbones" in options:
        del own["backbone"]
    compared = perform("compare", {**own, **options}, say)
    assert isinstance(compared, Compared)
    return compared


@dataclass
class Finished:
    """A comparison that was made, and the runs that there were then."""

    desk: Desk
    run: Run
    stages: list[Run]

    def of(self, schedule: str, backbone: str = NAME) -> list[Run]:
        """The last runs of a schedule, by draw, found through the table of results."""
        table = results(self.run)
        rows = table[(table.schedule == schedule) & (table.backbone == backbone)]
        by_id = {run.info.run_id: run for run in self.stages}
        return [by_id[run_id] for run_id in rows.sort_values("draw").run_id]

    def pairs(self, one: str, other: str = "full", backbone: str = NAME) -> list[tuple[Run, Run]]:
        """The last runs of two schedules, draw by draw."""
        return list(zip(self.of(one, backbone), self.of(other, backbone), strict=True))


def results(run: Run) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(artifact(run, "results.csv").read_text()))


@dataclass
class Known:
    """The method's text, word by word, around the mean."""

    mean: float
    low: float
    high: float
    p_better: float
    p_worse: float
    p_positive: float

    @classmethod
    def of(cls, values: Sequence[float], correction: float = 0.0, rope: float = 0.5) -> Known:
        count = len(values)
        # no better known than rounding to one of the 30 test images
        mean, sd = statistics.mean(values), max(statistics.stdev(values), 100 / 30 / 12**0.5)
        t = stats.t(count - 1, loc=mean, scale=sd * (1 / count + correction) ** 0.5)
        return cls.in_numbers(t, rope)

    @classmethod
    def by_image(
        cls, pairs: Sequence[tuple[Run, Run]], correction: float = 0.0, rope: float = 0.5
    ) -> Known:
        """Of the difference between the first runs and the second, for other images, too."""
        return cls.in_numbers(BothParts.of(differences(pairs), correction), rope)

    @classmethod
    def in_numbers(cls, t: rv_frozen | BothParts, rope: float) -> Known:
        low, high = t.interval(0.95)
        return cls(t.median(), low, high, t.sf(rope), t.cdf(-rope), t.sf(0))

    def shown(self) -> str:
        low, high = max(self.low, -100), min(self.high, 100)  # as far as shares reach
        return f"{self.mean:+.2f} ({low:+.2f} to {high:+.2f})"


def check_numbers(run: Run, backbone: str, schedule: str, known: Known) -> None:
    metrics, name = run.data.metrics, f"{backbone}/{schedule}"
    assert metrics[f"difference_pp/{name}"] == pytest.approx(known.mean, rel=1e-5, abs=1e-3)
    assert metrics[f"p_better/{name}"] == pytest.approx(known.p_better, rel=1e-5)
    assert metrics[f"p_worse/{name}"] == pytest.approx(known.p_worse, rel=1e-5)
