"""Networks by name: near names are offered, and what cannot be made or fetched is one line."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import SettingsError, WeightsError
from pipeline.model.backbones import build_backbone
from pipeline.model.factories import sources_of
from pipeline.model.networks import check_name
from pipeline.weights.inputs import InputConfig, input_config
from pipeline.weights.pretrained import read_weights
from tests import forked
from tests.helpers import CLASSES, as_in_a_new_process

VIT = "timm:vit_tiny_patch16_224"


def needs_timm() -> None:
    pytest.importorskip("timm", reason="timm is an extra")


def refused(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        check_name(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("resnet81", "did you mean .*resnet18"),
        ("zzzzzz", r"zzzzzz is not known: pass a classifier of torchvision, timm:NAME"),
        ("fcn_resnet50", "is not known"),  # of torchvision, but no classifier
        ("tests.networks:biuld", "has no function biuld: did you mean build"),
        ("tests.networks:WIDTH", "has no function WIDTH: name a function"),
        (
            "no_such_module:build",
            "cannot be imported .*ModuleNotFoundError.*put it on Python's path",
        ),
        ("tests/networks.py:build", "package.module:function"),
        ("networks.py:build", r"networks\.py cannot be imported .*: write networks:build"),
        ("tests.networks:", "package.module:function"),
        ("../nets:build", "package.module:function"),
    ],
)
def test_a_name_that_no_network_has_is_refused_and_near_ones_are_offered(
    name: str, words: str
) -> None:
    refused(name, words)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("timm:vit_tiny_patch16_244", f"did you mean .*{VIT}"),
        (
            "timm:test_resnet.in22k",
            r"is no tag of weights in timm .*: pass timm:test_resnet\.r160_in1k or",
        ),
        ("timm:qqqqqqqq", "is not known to timm [0-9.]+: pass timm:NAME"),
    ],
)
def test_a_name_that_timm_does_not_know_is_refused(name: str, words: str) -> None:
    needs_timm()
    refused(name, words)


def test_without_timm_its_networks_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    refused("timm:regnety_002", "timm is not installed: pip install timm")


def test_a_module_that_fails_while_it_is_imported_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_network.py").write_text("raise ValueError('no\\nway')\n")
    (tmp_path / "exiting_network.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "needy_network.py").write_text("import no_such_module\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    refused("broken_network:build", r"cannot be imported \(ValueError: no\): mend that module")
    refused("exiting_network:build", r"cannot be imported \(SystemExit: 0\): mend that module")
    refused("needy_network:build", r"\(.*no_such_module'\): mend that module")


def test_a_factory_is_found_where_the_command_runs_and_its_files_are_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "own_networks"
    (package / "parts").mkdir(parents=True)
    (package / "parts" / "__init__.py").write_text("from tests.networks import Net\n")
    (package / "__init__.py").write_text("from own_networks.parts import Net as build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    backbone = build_backbone("own_networks:build", CLASSES, 32, seed=0)
    assert len(backbone.segments) == 4
    files = [Path("own_networks/__init__.py"), Path("own_networks/parts/__init__.py")]
    assert set(map(Path, sources_of("own_networks:build"))) == set(files)


def test_what_a_factory_imports_from_beside_it_is_of_its_files_and_nothing_else_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lone_network.py").write_text("from lone_parts import build\nimport json\n")
    (tmp_path / "lone_parts.py").write_text(
        "from tests.networks import Net\ndef build(num_classes):\n    import lone_late\n"
        "    return Net(num_classes)\n"
    )
    (tmp_path / "lone_late.py").touch()
    (tmp_path / "lone_other.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = build_backbone("lone_network:build", CLASSES, 32, seed=0).identity
    assert set(sources_of("lone_network:build")) == {
        "lone_network.py",
        "lone_parts.py",
        "lone_late.py",
    }
    (tmp_path / "lone_late.py").write_text("WIDTH = 9\n")
    as_in_a_new_process("lone_network", "lone_parts", "lone_late")
    assert build_backbone("lone_network:build", CLASSES, 32, seed=0).identity != before


@pytest.mark.parametrize("edited", ["live_network.py", "live_parts.py"])
def test_code_that_was_edited_since_the_process_began_does_not_name_what_earlier_code_computes(
    edited: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "live_network.py").write_text(
        "from live_parts import build\ndef later():\n    import live_late\n"
    )
    (tmp_path / "live_late.py").touch()
    (tmp_path / "live_parts.py").write_text("from tests.networks import Net as build\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    name, path = "live_network:build", tmp_path / edited
    check_name(name)
    before = path.read_bytes()
    path.write_bytes(before + b"WIDTH = 9\n")
    with pytest.raises(SettingsError, match=rf"changed since this .*{edited}.* again") as caught:
        build_backbone(name, CLASSES, 32, seed=0)
    assert "\n" not in str(caught.value)
    assert sources_of(name)[edited] == before
    path.write_bytes(before)
    (tmp_path / "live_late.py").write_text("WIDTH = 9\n")  # which nothing has loaded
    identity = build_backbone(name, CLASSES, 32, seed=0).identity
    as_in_a_new_process("live_network", "live_parts")
    assert build_backbone(name, CLASSES, 32, seed=0).identity != identity
    as_in_a_new_process("live_network", "live_parts")


def test_a_factory_in_a_folder_without_init_has_all_files_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "open_networks" / "deep").mkdir(parents=True)
    (tmp_path / "open_networks" / "small.py").write_text(
        "from tests.networks import Net as build\nfrom .deep import part\nimport beside_them\n"
    )
    part = tmp_path / "open_networks" / "deep" / "part.py"
    for path in (part, tmp_path / "open_networks" / "other.py", tmp_path / "beside_them.py"):
        path.touch()
    (tmp_path / "not_imported.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = build_backbone("open_networks.small:build", CLASSES, 32, seed=0).identity
    files = ["small.py", "other.py", "deep/part.py"]
    wanted = {Path("beside_them.py"), *(Path("open_networks") / file for file in files)}
    assert set(map(Path, sources_of("open_networks.small:build"))) == wanted
    part.write_text("WIDTH = 9\n")
    as_in_a_new_process("open_networks", "beside_them")
    assert build_backbone("open_networks.small:build", CLASSES, 32, seed=0).identity != before


def test_a_folder_without_init_at_two_places_is_one_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, file in (("one", "small"), ("one", "both"), ("two", "both"), ("two", "part")):
        path = tmp_path / place / "split_networks" / f"{file}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"from tests.networks import Net as build  # {place}\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path / "one"), str(tmp_path / "two"), *sys.path])
    build_backbone("split_networks.small:build", CLASSES, 32, seed=0)
    found = sources_of("split_networks.small:build")
    places = {Path(name).stem: found[name].split()[-1].decode() for name in found}
    assert places == {"small": "one", "both": "one", "part": "two"}
    assert set(map(Path, found)) == {Path("split_networks") / f"{name}.py" for name in places}


def test_what_a_lone_factory_imports_from_a_folder_without_init_is_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, content in {
        "alone_network.py": "from open_parts.deep import part\nimport open_parts.more\n"
        "from tests.networks import Net as build\n",
        "open_parts/deep/part.py": "from .. import beside\n",
        "open_parts/beside.py": "",
        "open_parts/more.py": "",
        "open_parts/other.py": "",
    }.items():
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    build_backbone("alone_network:build", CLASSES, 32, seed=0)
    files = ["alone_network.py"]
    files += [f"open_parts/{name}.py" for name in ("deep/part", "beside", "more")]
    assert set(map(Path, sources_of("alone_network:build"))) == set(map(Path, files))


@pytest.mark.parametrize(
    ("name", "size"), [("alexnet", 32), ("inception_v3", 32), ("timm:vit_tiny_patch16_224", 8)]
)
def test_sizes_that_a_network_refuses_are_one_line(name: str, size: int) -> None:
    if name.startswith("timm"):
        needs_timm()
    with pytest.raises(SettingsError, match=rf"{name}.*{size} px.*image_size") as caught:
        build_backbone(name, CLASSES, size, seed=0)
    assert "\n" not in str(caught.value)


def test_a_network_says_what_it_expects_of_an_image() -> None:
    found = input_config("tests.networks:half_grey", "none")
    assert found == InputConfig(
        size=48, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), interpolation="bicubic"
    )


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("one_channel", r"mean: .* 3 items.*, got \(0\.5,\): mend it"),
        ("no_deviation", r"std: .*greater than 0, got \(0\.5, 0, 0\.5\)"),
        ("by_area", "interpolation: .*'bicubic' or 'lanczos', got 'area'"),
        ("huge", "size: .*1024, got 4096"),
        ("misspelt", r"has no 'means': did you mean mean\?"),
        ("no_mapping", "must be a mapping of size, mean, std, .*, got 'imagenet'"),
    ],
)
def test_an_input_that_no_image_can_be_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(SettingsError, match=rf"{name}: input_config.*{words}") as caught:
        input_config(f"tests.networks:{name}", "none")
    assert "\n" not in str(caught.value)


# Weights


def test_positions_of_a_file_are_interpolated_to_the_images_of_a_transformer(
    tmp_path: Path,
) -> None:
    needs_timm()
    import timm

    torch.manual_seed(0)
    larger = timm.create_model("vit_tiny_patch16_224", num_classes=7)
    torch.save(larger.state_dict(), tmp_path / "w.pth")
    weights = read_weights(str(tmp_path / "w.pth"), VIT, 64)
    backbone = build_backbone(VIT, CLASSES, 64, seed=1)
    pretrained = weights.fitted(backbone)
    pretrained.apply(backbone)
    adapted = timm.layers.resample_abs_pos_embed(larger.pos_embed, [4, 4])
    state, source = backbone.model.state_dict(), larger.state_dict()
    torch.testing.assert_close(state["pos_embed"], adapted)
    same = [n for n in source if n not in ("pos_embed", "head.weight", "head.bias")]
    assert all(torch.equal(state[name], source[name]) for name in same)
    assert "left out head.weight and head.bias" in pretrained.report


@pytest.mark.parametrize("name", ["test_convnext", "test_efficientnet"])
def test_a_file_that_timm_saved_fits_and_another_networks_does_not(
    name: str, tmp_path: Path
) -> None:
    needs_timm()
    import timm

    torch.save(timm.create_model(name, num_classes=9).state_dict(), tmp_path / "w.pth")
    backbone = build_backbone(f"timm:{name}", CLASSES, 32, seed=0)
    pretrained = read_weights(str(tmp_path / "w.pth"), backbone.name, 32).fitted(backbone)
    assert set(pretrained.tensors) == set(backbone.tensor_names(backbone.order[:-1]))
    with pytest.raises(WeightsError, match="do not fit timm:test_resnet"):
        read_weights(str(tmp_path / "w.pth"), "timm:test_resnet", 32)


def test_pretrained_weights_of_a_factory_are_what_it_returns() -> None:
    backbone = build_backbone("tests.networks:ready_made", CLASSES, 32, seed=5)
    pretrained = read_weights("pretrained", backbone.name, 32).fitted(backbone)
    pretrained.apply(backbone)
    stem = backbone.model.get_parameter("stem.0.weight")
    assert torch.equal(stem, torch.full_like(stem, 0.125))
    with pytest.raises(WeightsError, match="is a factory, nobody publishes its weights"):
        read_weights("IMAGENET1K_V1", backbone.name, 32)


def test_a_network_that_timm_publishes_no_weights_of_says_which_have_some() -> None:
    needs_timm()
    with pytest.raises(WeightsError, match=r"publishes no such weights of dpn48b \(timm has none"):
        read_weights("pretrained", "timm:dpn48b", 32)
    with pytest.raises(WeightsError, match=r"\(timm has timm:test_vit\.r160_in1k\)"):
        read_weights("IMAGENET1K_V1", "timm:test_vit", 32)  # and not of test_vit2


def test_a_network_whose_state_has_a_version_takes_tensors() -> None:
    """Torchvision's MNASNet loads no plain mapping."""
    backbone, other = (build_backbone("mnasnet0_5", CLASSES, 32, seed=s) for s in (0, 1))
    backbone.put(other.model.state_dict())
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, other.model.state_dict()[name])
    assert isinstance(backbone.model.get_submodule("classifier"), nn.Sequential)


@pytest.mark.slow
@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "CLOSED"}])
def test_published_weights_that_cannot_be_fetched_are_one_line_at_once(
    environment: dict[str, str], tmp_path: Path, image_folder: Path
) -> None:
    needs_timm()
    closed = {k: "http://127.0.0.1:1" if v == "CLOSED" else v for k, v in environment.items()}
    words = ["stage1", "--backbone", "timm:test_resnet.r160_in1k", "--weights", "pretrained"]
    words += ["--data", str(image_folder), "--image_size", "32"]
    words += ["--train_per_class", "2", "--val_per_class", "2"]
    own = {**os.environ, **closed, "HF_HOME": str(tmp_path / "hf")}
    own["MLFLOW_TRACKING_URI"] = f"sqlite:///{tmp_path / 'm.db'}"
    done = forked.run(words, tmp_path, own, limit_s=120)
    assert done.returncode == 2, done.stderr
    assert "cannot fetch the pretrained weights of timm:test_resnet.r160_in1k" in done.stderr
    assert "Traceback" not in done.stderr
