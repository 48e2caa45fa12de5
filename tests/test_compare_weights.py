"""Every backbone of a comparison starts from weights of its own: downloaded ones, or files."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torchvision

from pipeline.cli import main
from pipeline.model.backbones import build_backbone
from pipeline.weights.inputs import InputConfig, input_config
from tests.comparisons import OWN, compare, new_desk, results
from tests.conftest import inside, words_of
from tests.helpers import load_pretrained
from tests.served import Quiet, publish
from tests.test_decide import Desk, acc, runs

pytestmark = pytest.mark.slow

BACKBONES = ("mobilenet_v3_small", "mobilenet_v2")
TWO = {
    "schedules": "full,head_only",
    "baseline": "head_only",
    "backbones": ",".join(BACKBONES),
}


@pytest.fixture
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Desk]:
    """An empty store."""
    empty = new_desk(tmp_path_factory, empty_database)
    with inside(empty.folder):
        yield empty


@pytest.fixture
def published(
    tmp_path: Path, checkpoints: Path, serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Path]:
    """A server from which torchvision fetches both backbones' weights."""
    folder = tmp_path / "published"
    folder.mkdir()
    found = {name: publish(name, folder) for name in BACKBONES}
    url = serve(partial(Quiet, directory=str(folder)))
    for name, path in found.items():
        entry: Any = torchvision.models.get_model_weights(name).DEFAULT
        monkeypatch.setattr(entry.value, "url", f"{url}/{path.name}")
    return found


def test_imagenet_weights_are_fetched_for_each_backbone(
    desk: Desk, published: dict[str, Path], checkpoints: Path
) -> None:
    compare(desk, **TWO, weights="imagenet")
    assert {p.name for p in checkpoints.iterdir()} == {p.name for p in published.values()}
    (comparison,) = runs("comparison")
    table = results(comparison)
    assert list(table.groupby(["backbone", "schedule"]).size()) == [2, 2, 2, 2]
    by_id = {run.info.run_id: run for run in runs()}
    for name in BACKBONES:
        wanted = load_pretrained("imagenet", build_backbone(name, 3, 32, seed=0)).digest
        of_it = [run for run in by_id.values() if run.data.tags["z.backbone"] == name]
        assert of_it
        assert {run.data.tags["z.weights"] for run in of_it} == {"imagenet"}
        assert {run.data.tags["z.weights_sha256"] for run in of_it} == {wanted}
        lasts = [by_id[i] for i in table[table.backbone == name].run_id]
        mean = statistics.mean(acc(run) for run in lasts if run.data.tags["schedule"] == "full")
        logged = comparison.data.metrics[f"test_acc/{name}/full"]
        assert logged == pytest.approx(mean, abs=2e-6)


def test_test_images_are_prepared_as_the_weights_of_each_backbone_want_them(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`evaluate`, which reads them for one backbone alone, comes to the same loss."""

    def wanted(backbone: str, weights: str) -> InputConfig:
        found = input_config(backbone, weights)
        return found if backbone == BACKBONES[0] else replace(found, mean=(0.9, 0.1, 0.5))

    monkeypatch.setattr("pipeline.settings.run.input_config", wanted)
    compare(desk, **TWO)
    for name in BACKBONES:
        table = results(runs("comparison")[0])
        run_id = table[table.backbone == name].run_id.iloc[0]
        before = mlflow.get_run(run_id).data
        assert ("0.9" in before.params["mean"]) == (name == BACKBONES[1])
        assert main(["evaluate", "--run_id", run_id]) == 0
        after = mlflow.get_run(run_id).data
        assert after.metrics["test/loss"] == pytest.approx(before.metrics["test/loss"], abs=1e-5)


def test_weights_that_cannot_be_fetched_are_one_line_before_any_run(
    desk: Desk,
    published: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    published["mobilenet_v2"].unlink()
    words = {**desk.own, **OWN, **TWO, "weights": "imagenet"}
    del words["backbone"]
    assert main(words_of("compare", words)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1
    assert errors[0].startswith("error: cannot download the imagenet weights of mobilenet_v2 from")
    assert runs() == []
    assert runs("comparison") == []


def test_every_backbone_starts_from_the_file_that_was_pretrained_for_it(desk: Desk) -> None:
    """`pretrain` writes a file for each, `weights=…{backbone}…` finds them."""
    pretrained = desk.folder / "weights"
    pretrained.mkdir()
    shared = {k: v for k, v in desk.own.items() if k not in ("backbone", "weights", "norm_stats")}
    for name in BACKBONES:
        out = pretrained / f"{name}.safetensors"
        words = {**shared, "backbone": name, "epochs": "1", "draw": "2", "out": str(out)}
        assert main(words_of("pretrain", words)) == 0
    compare(desk, **TWO, weights=str(pretrained / "{backbone}.safetensors"))
    (comparison,) = runs("comparison")
    under = comparison.info.run_id  # and not those of `pretrain`
    tags = [r.data.tags for r in runs() if r.data.tags.get("mlflow.parentRunId") == under]
    for name in BACKBONES:
        path = str(pretrained / f"{name}.safetensors")
        wanted = load_pretrained(path, build_backbone(name, 3, 32, seed=0)).digest
        assert {t["z.weights_sha256"] for t in tags if t["z.backbone"] == name} == {wanted}
