"""The page: what it answers, what it makes of bad files, where networks look, what is kept."""

from __future__ import annotations

import importlib.util
import io
import random
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.app.attention import block_map, occlusion_map, overlay, places_a_side, third_block
from pipeline.app.keep import checked_label, keep_picture, next_command
from pipeline.app.panels import Answer, compared_run, examples_of, panel_of, stages_up_to
from pipeline.app.serve import about
from pipeline.data.images import digest_image
from pipeline.entries.command_line.table import perform
from pipeline.errors import DataError, LineageError, SettingsError, StorageError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.runs.command import Command
from pipeline.settings.request import Request
from pipeline.tracking import RunView, Tracking
from pipeline.tracking.keys import KIND, NETWORK_SHA256, NOTE, REFIT, stored_tag
from tests.conftest import class_image, enter_store, inside, tiny, write_image_folder
from tests.helpers import as_in_a_new_process, edited_factory

if not importlib.util.find_spec("gradio"):  # importing takes seconds, and few tests need it
    pytest.skip("the extra app is not installed", allow_module_level=True)

NET = """
import torch
from torch import nn

class Net(nn.Module):
    blocks = {"head": "fc", "late": "late", "middle": "middle", "early": "early"}

    def __init__(self, num_classes):
        super().__init__()
        self.early = nn.Conv2d(3, 2, 1, bias=False)
        self.middle = nn.Sequential(nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Conv2d(2, 2, 1))
        self.late = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(2, 2, 1, bias=False))
        self.fc = nn.Linear(2, num_classes)

    def forward(self, x):
        return self.fc(self.late(self.middle(self.early(x))).mean((2, 3)))

def build(num_classes):
    return Net(num_classes)
"""


@pytest.fixture
def reds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backbone]:
    """A network whose class 0 is red and whose class 1 is blue, wherever it is."""
    (tmp_path / "red_or_blue.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    importlib.invalidate_caches()
    backbone = build_backbone("red_or_blue:build", 2, 64, 0)
    one = torch.eye(2).view(2, 2, 1, 1)
    red = torch.tensor([[1.0, -1, 0], [0, -1, 1]]).view(2, 3, 1, 1)
    zero = torch.zeros(2)
    backbone.put({"early.weight": red, "middle.2.weight": one, "middle.2.bias": zero})
    backbone.put({"late.1.weight": one, "fc.weight": 50 * torch.eye(2), "fc.bias": zero})
    yield backbone
    as_in_a_new_process("red_or_blue")


def planted(colour: int, row: int, column: int, size: int = 64) -> torch.Tensor:
    """A dark picture with a coloured square of 12 pixels, uint8, (3, S, S)."""
    pixels = torch.full((3, size, size), 20, dtype=torch.uint8)
    pixels[colour, row : row + 12, column : column + 12] = 250
    return pixels


PLACES = [(4, 8), (44, 6), (10, 48), (46, 46), (26, 26)]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("label", [0, 1])
def test_the_map_is_highest_on_the_planted_object(
    reds: Backbone, label: int, place: tuple[int, int]
) -> None:
    both = planted(2 * label, *place)
    other = next(one for one in PLACES if one != place)
    both = torch.maximum(both, planted(2 * (1 - label), *other))  # of the other class: no mark
    images = both[None].float() / 255
    assert third_block(reds) == "middle"
    for block in ("early", "middle"):
        found = block_map(reds, images, label, block)
        assert found is not None
        assert found.shape == (64, 64)
        row, column = divmod(int(found.argmax()), 64)
        assert place[0] <= row < place[0] + 12
        assert place[1] <= column < place[1] + 12
        assert found[other[0] + 4 : other[0] + 8, other[1] + 4 : other[1] + 8].max() == 0
        assert (float(found.min()), float(found.max())) == (0, 1)
    assert block_map(reds, images, label, "late") is None  # the mean over places is part of it


@pytest.mark.parametrize("place", PLACES)
def test_occlusion_finds_the_planted_object_in_any_network(
    reds: Backbone, place: tuple[int, int]
) -> None:
    def probabilities(pixels: torch.Tensor) -> torch.Tensor:
        return reds.model(pixels.float() / 255).softmax(1).detach()

    found = occlusion_map(probabilities, planted(0, *place), 0)
    row, column = divmod(int(found.argmax()), 64)  # to the side of the square that covers
    assert abs(row - place[0] - 6) <= 16
    assert abs(column - place[1] - 6) <= 16


def test_a_class_that_nothing_speaks_for_has_an_empty_map(reds: Backbone) -> None:
    found = block_map(reds, planted(2, 20, 20)[None].float() / 255, 0, "middle")
    assert found is not None
    assert float(found.max()) == 0
    shown = overlay(planted(2, 20, 20), found)
    assert shown.size == (256, 256)


def test_tokens_and_single_places_are_no_map() -> None:
    pytest.importorskip("timm", reason="timm is an extra")
    tokens = build_backbone("timm:test_vit", 3, 160, 0)
    for block in tokens.order[1:]:
        assert block_map(tokens, torch.zeros(1, 3, 160, 160), 0, block) is None
    small = build_backbone("resnet18", 3, 32, 0)
    assert block_map(small, torch.zeros(1, 3, 32, 32), 0, "block4") is None  # 1 x 1
    assert block_map(small, torch.zeros(1, 3, 32, 32), 0, "block3") is not None
    assert places_a_side(small, "block4") is None
    assert places_a_side(small, "block3") == 2
    assert places_a_side(build_backbone("resnet18", 3, 224, 0), "block3") == 14
    assert places_a_side(tokens, tokens.order[1]) is None


@pytest.mark.slow
def test_maps_with_channels_last_are_read_as_such() -> None:
    swin = build_backbone("swin_t", 3, 128, 0)
    block = third_block(swin)
    end = next(n for n, s in enumerate(swin.segments, start=1) if block in s.blocks)
    with torch.no_grad():
        made = swin.run(torch.rand(1, 3, 128, 128), end=end)
    assert made.shape[1] == made.shape[2] != made.shape[3]
    found = block_map(swin, torch.rand(1, 3, 128, 128), 0, block)
    assert found is not None
    assert found.shape == (128, 128)
    assert places_a_side(swin, block) == made.shape[1]


# what is kept


def test_a_picture_is_kept_once_under_its_class_as_the_next_training_reads_it(
    tmp_path: Path, empty_database: Path
) -> None:
    keep, picture = tmp_path / "kept", class_image(0, 1)
    path = keep_picture(picture, "a new class", keep)
    assert path == keep / "a new class" / f"{digest_image(picture).hex()}.png"
    with Image.open(path) as stored:
        assert digest_image(stored.convert("RGB")) == digest_image(picture)
    before = path.stat().st_mtime_ns
    assert keep_picture(picture, "a new class", keep) == path
    assert path.stat().st_mtime_ns == before
    with pytest.raises(DataError, match="kept as a new class already: delete"):
        keep_picture(picture, "other", keep)
    assert [file for file in keep.rglob("*") if file.is_file()] == [path]
    line = next_command(keep)
    assert line.startswith(f"1 picture of 1 class in {keep}: too few to train on alone")
    assert "with 3 or more of each class" in line  # as the README has it
    for number in range(3):
        for label, name in enumerate(("a new class", "other")):
            keep_picture(class_image(label, 50 + number), name, keep)
    assert f"Train with: mlflow run . -e main --env-manager local -P data={keep}" in (
        next_command(keep)
    )
    options = {"schedule": "head_only", "preset": "images", "log_model": "off"}
    own = tiny(keep, tmp_path, {**options, "train_per_class": "auto", "val_per_class": "auto"})
    with pytest.MonkeyPatch.context() as patch:
        enter_store(tmp_path / "work", empty_database, patch)
        assert perform("stage1", own, lambda _: None).number == 1


def test_a_kept_picture_is_read_again_whatever_profile_it_came_with(tmp_path: Path) -> None:
    picture = class_image(0, 1)
    picture.info["icc_profile"] = random.Random(0).randbytes(2 << 20)
    with Image.open(keep_picture(picture, "apple", tmp_path)) as stored:
        assert digest_image(stored.convert("RGB")) == digest_image(picture)


def test_a_picture_is_kept_once_however_its_class_is_composed(tmp_path: Path) -> None:
    for known in ("\u00e9te", "e\u0301te"):
        folder, picture = tmp_path / str(len(known)), class_image(0, 1)
        assert keep_picture(picture, known, folder) == keep_picture(picture, known, folder)


@pytest.mark.parametrize(
    "label",
    [
        *("../up", "..", ".", "/etc", "a/b", "a\\b", ".hidden", "~root", "", "   ", "x\ny", "\0"),
        *("C:x", "a" * 101, "a?b", "lost+found", "label", "\ud800"),
    ],
)
def test_a_class_that_would_be_another_place_is_refused(label: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class"):
        checked_label(label, ["apple"])


@pytest.mark.parametrize("label", [".", "..", ".22", "__MACOSX"])
def test_a_known_class_that_would_be_another_place_is_refused_too(label: str) -> None:
    with pytest.raises(DataError, match="a class cannot be called so"):
        checked_label(label, [label])


@pytest.mark.parametrize(
    ("label", "name"), [("apple", "apple"), (" new one ", "new one"), ("e\u0301te", "éte")]
)
def test_a_harmless_class_is_taken(label: str, name: str) -> None:
    assert checked_label(label, ["apple"]) == name


def test_a_known_class_is_meant_however_its_name_is_composed() -> None:
    for known in ("\u00e9te", "e\u0301te"):
        for typed in ("\u00e9te", "e\u0301te"):
            assert checked_label(typed, [known]) == known


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    with pytest.raises(StorageError, match=r"cannot write .*png to .*kept"):
        keep_picture(class_image(0, 1), "apple", tmp_path / "kept")


# what is shown of a network


@pytest.mark.parametrize(
    "layer",
    [
        "stem[2] = nn.Hardswish()",  # fits, and computes something else
        "stem[0] = nn.Conv2d(3, 8, 5, 4, 2, bias=False)",  # another shape
        "fc = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, num_classes))",  # other names
    ],
)
def test_a_factory_that_was_edited_since_has_no_map_of_the_edited_network(
    layer: str, command: Callable[..., int], store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = edited_factory(store, "stem[2] = nn.ReLU()", monkeypatch).name
    options = {"schedule": "head_only", "image_size": "64", "log_model": "on"}
    assert command("stage1", backbone=backbone, **options) == 0
    tracking, (run,) = Tracking.connect(), mlflow.search_runs(output_format="list")
    runs = [run.info.run_id]
    if "Hardswish" in layer:
        perform("refit", {"run_id": run.info.run_id}, lambda _: None)
        runs.append(refit_run())

    def shown() -> list[Answer]:
        panels = (panel_of(tracking, tracking.get(run_id), "a model") for run_id in runs)
        return [panel.answer(class_image(0, 1)) for panel in panels]

    before = shown()
    assert {answer.looked_at for answer in before} == {"HiResCAM after early"}
    edited_factory(store, layer, monkeypatch)
    after = shown()
    assert {answer.looked_at for answer in after} == {"occlusion, of the whole network"}
    logged = [answer.probabilities for answer in before]
    assert [answer.probabilities for answer in after] == logged
    mlflow.MlflowClient().delete_tag(run.info.run_id, stored_tag(NETWORK_SHA256))
    if "Hardswish" not in layer:  # runs of earlier versions have no tag
        assert shown()[0].looked_at == after[0].looked_at


# the page


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Iterator[Path]:
    """A store with a chain of two stages, the first without a model, and a refit of it."""
    root = tmp_path_factory.mktemp("app")
    images = write_image_folder(root / "images", 14)
    with pytest.MonkeyPatch.context() as patch:
        enter_store(root / "work", empty_database, patch)
    with inside(root / "work"):
        options = {"test_per_class": "4", "preset": "images", "stage2.epochs": "1"}
        stage = perform("stage2", tiny(images, root / "work", options), lambda _: None)
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "onnx", None)  # not what is tested here
            perform("refit", {"run_id": stage.run_id}, lambda _: None)
        yield root


def refit_run() -> str:
    (run,) = mlflow.search_runs(["0"], "tags.kind = 'refit'", output_format="list")
    return str(run.info.run_id)


@pytest.fixture(scope="module")
def page(desk: Path) -> object:
    from pipeline.app.page import Page

    tracking, said = Tracking.connect(), []
    command = Command(request=Request.read({}), say=said.append)
    run = tracking.get(refit_run())
    compared = compared_run(tracking, run, said.append)
    assert compared
    stages = list(stages_up_to(tracking, compared, command))
    assert [stage.title for stage in stages] == ["stage 1: head", "stage 2: head + block4"]
    assert len([line for line in said if "has its pictures and its model now" in line]) == 2
    own = panel_of(tracking, run, run.name)
    return Page(own=own, stages=stages, keep=desk / "kept", about="about", beside="beside")


def test_every_panel_answers_with_three_classes_and_a_map(page: object, desk: Path) -> None:
    message, *shown = page.classify(str(desk / "images" / "apple" / "01.png"))  # type: ignore[attr-defined]
    assert message == ""
    assert len(shown) == 6
    for probabilities, looks in zip(shown[::2], shown[1::2], strict=True):
        assert set(probabilities) == {"apple", "berry", "cherry"}
        assert sum(probabilities.values()) == pytest.approx(1)
        assert list(probabilities.values()) == sorted(probabilities.values(), reverse=True)
        assert looks["value"].size == (256, 256)
        assert looks["label"].startswith("looks at (")


def bomb() -> bytes:
    """A PNG of a few bytes that says that it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + data + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def deep() -> Image.Image:
    return Image.fromarray(np.linspace(0, 60_000, 32 * 32).reshape(32, 32).astype(np.uint16))


COLOURS = class_image(0, 3)
BAD = {
    "text": b"hello",
    "empty": b"",
    "bomb": bomb(),
    "truncated": saved(COLOURS, "PNG")[:300],
    "html": b"<!doctype html><html></html>",
}
GOOD = {
    "cmyk": saved(COLOURS.convert("CMYK"), "JPEG"),
    "animated": saved(COLOURS, "GIF", save_all=True, append_images=[class_image(1, 4)]),
    "16-bit": saved(deep(), "PNG"),
    "tiff": saved(deep(), "TIFF"),
    "palette": saved(COLOURS.convert("P"), "PNG"),
    "transparent": saved(COLOURS.convert("RGBA"), "WEBP"),
    "one pixel": saved(COLOURS.resize((1, 1)), "PNG"),
    "very wide": saved(COLOURS.resize((4000, 3)), "PNG"),
    "grey": saved(COLOURS.convert("L"), "BMP"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_gets_one_sentence(page: object, name: str, tmp_path: Path) -> None:
    path = tmp_path / "upload.png"
    path.write_bytes(BAD[name])
    message, *shown = page.classify(str(path))  # type: ignore[attr-defined]
    assert message.startswith("This file cannot be read (")
    assert "\n" not in message
    assert "…" not in message
    assert shown == [None] * 6
    assert "cannot be read" in page.keep_it(str(path), "apple")  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", GOOD)
def test_an_odd_picture_works(page: object, name: str, tmp_path: Path) -> None:
    path = tmp_path / "upload.png"
    path.write_bytes(GOOD[name])
    message, *shown = page.classify(str(path))  # type: ignore[attr-defined]
    assert "cannot be read" not in message
    assert len(shown[0]) == 3


def test_the_camera_is_turned_as_in_training(page: object, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "turned.jpg").write_bytes(saved(COLOURS.crop((0, 0, 32, 20)), "JPEG", exif=exif))
    with Image.open(tmp_path / "turned.jpg") as turned:
        turned.transpose(Image.Transpose.ROTATE_270).save(tmp_path / "upright.png")
    one, two = (
        page.classify(str(tmp_path / name))[1]  # type: ignore[attr-defined]
        for name in ("turned.jpg", "upright.png")
    )
    assert one == pytest.approx(two)


def test_keeping_says_where_and_what_to_type_or_why_not(page: object, desk: Path) -> None:
    path = str(desk / "images" / "apple" / "02.png")
    keep = page.keep_it  # type: ignore[attr-defined]
    assert keep(None, "apple") == keep("", None)
    assert "Choose the right class" in keep(path, None)
    assert keep(path, "../../up").startswith("Not kept: ")
    line = keep(path, "a new class")
    assert line.startswith("Kept as ")
    assert "-e main" in line.replace("\\", "")
    (kept,) = (desk / "kept").rglob("*.png")
    assert kept.parent.name == "a new class"


def test_examples_are_a_test_image_of_each_class(desk: Path, tmp_path: Path) -> None:
    said: list[str] = []
    command = Command(request=Request.read({}), say=said.append)
    run = Tracking.connect().get(refit_run())
    found = examples_of(run, command, tmp_path / "examples")
    assert [label for _, label in found] == ["apple", "berry", "cherry"]
    for path, _ in found:
        with Image.open(path) as picture:
            assert picture.size == (32, 32)
    gone = Command(request=Request.read({"data": "/nowhere"}), say=said.append)
    assert examples_of(run, gone, tmp_path / "none") == []
    assert any(line.startswith("note: no examples: ") for line in said)


def test_without_gradio_or_a_model_one_line(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LineageError, match="run 0{32} does not exist"):  # noqa: RUF043
        perform("app", {"run_id": "0" * 32}, lambda _: None)
    with pytest.raises(SettingsError, match="port must be less than or equal to 65535"):
        perform("app", {"port": "70000"}, lambda _: None)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SettingsError, match=r"gradio is not installed: pip install '\.\[app\]'"):
        perform("app", {}, lambda _: None)


@pytest.mark.parametrize("first", ["", "**Trained on 1,197 images: 99.2% recognised.**\n\n"])
def test_the_page_begins_with_the_verdict_of_the_card(first: str) -> None:
    card = f"{first}# refit · stage 2 · digits\n\nStage 3 loses 1.1 pp.\n\n**Test accuracy**: 99%"
    tags = {KIND: REFIT, NOTE: card}
    run = RunView(run_id="ab", name="refit", status="FINISHED", tags=tags, params={}, metrics={})
    assert about(run) == "Run ab, never scored.\n\nStage 3 loses 1.1 pp."


def test_a_deleted_stage_before_is_a_note(page: object, desk: Path) -> None:
    """After all others: a run is deleted for a while."""
    tracking, said = Tracking.connect(), list[str]()
    command = Command(request=Request.read({}), say=said.append)
    compared = compared_run(tracking, tracking.get(refit_run()), said.append)
    assert compared
    parent = compared.tags["parent_run_id"]
    mlflow.MlflowClient().delete_run(parent)
    try:
        shown = list(stages_up_to(tracking, compared, command))
    finally:
        mlflow.MlflowClient().restore_run(parent)
    assert [stage.title for stage in shown] == ["stage 2: head + block4"]
    assert [line for line in said if "stages before stage 2" in line and parent in line]
