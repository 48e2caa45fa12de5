"""Weights that fit are taken, a classifier of another size is left out, all else is refused."""

from __future__ import annotations

import argparse
import gzip
import io
import math
import os
import pickle
import re
import shutil
import socket
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from pipeline.errors import DownloadError, WeightsError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.runs.messages.command_line import command_line
from pipeline.weights.pretrained import Pretrained, read_weights
from tests.conftest import SHARED, Command
from tests.helpers import changed_names, copy_state, load_pretrained, slow_after
from tests.networks import WIDTH, Net
from tests.served import NotHttp, Quiet, publish

SMALL = "mobilenet_v3_small"
HEAD = ("classifier.3.weight", "classifier.3.bias")
BELOW = {"classifier.0.weight": (1024, 576), "classifier.0.bias": (1024,)}
COUNT = 244
ALL_MATCHED = (
    f"{COUNT} of {COUNT} tensors matched, the classifier among them: it has as many classes"
)
CLOSED = "http://127.0.0.1:1"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(SMALL, 4, 32, seed=0)


@pytest.fixture(scope="module")
def other_state() -> State:
    """A fitting state dict with values of its own."""
    return build_backbone(SMALL, 4, 32, seed=1).model.state_dict()


@pytest.fixture(scope="module")
def digest(
    other_state: State, backbone: Backbone, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """Of what the small backbone takes from a file that holds the state dict and nothing else."""
    path = saved(other_state, tmp_path_factory.mktemp("plain") / "w.pth")
    return load_pretrained(path, backbone).digest


@pytest.fixture
def state(other_state: State) -> State:
    return dict(other_state)


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


Load = Callable[[object], Pretrained]


@pytest.fixture
def load(tmp_path: Path, backbone: Backbone) -> Load:
    """What the small backbone takes from a file `w.pth` with this content."""
    return lambda content: load_pretrained(saved(content, tmp_path / "w.pth"), backbone)


# --- what comes with the package -----------------------------------------------------------------


def test_tiny_imagenet_matches_all_but_the_classifier() -> None:
    pretrained = load_pretrained("tiny_imagenet", build_backbone("resnet18", 10, 32, seed=0))
    assert pretrained.report == (
        "weights tiny_imagenet: 120 of 122 tensors matched, left out fc.weight and fc.bias "
        "(new classes)"
    )
    assert len(pretrained.tensors) == 120
    assert len(pretrained.digest) == 64
    assert pretrained.tensors["conv1.weight"].dtype == torch.float32


def test_tiny_imagenet_is_for_resnet18_alone(backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=f"are for resnet18, got backbone {SMALL}: pass -P bac"):
        load_pretrained("tiny_imagenet", backbone)


def test_none_leaves_every_tensor_as_it_is(backbone: Backbone) -> None:
    pretrained = load_pretrained("none", backbone)
    assert (pretrained.name, pretrained.digest, pretrained.tensors) == ("none", "none", {})
    before = copy_state(backbone)
    pretrained.apply(backbone)
    assert changed_names(before, copy_state(backbone)) == set()


# --- files ---------------------------------------------------------------------------------------


def test_applied_weights_are_those_of_the_file(load: Load, state: State) -> None:
    pretrained = load(state)
    assert pretrained.report.endswith(ALL_MATCHED)
    backbone = build_backbone(SMALL, 4, 32, seed=0)
    pretrained.apply(backbone)
    assert changed_names(state, copy_state(backbone)) == set()


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def changed(state: State) -> State:
    """The same network with other values."""
    return {name: tensor + 1 for name, tensor in state.items()}


@pytest.fixture
def check_same(load: Load, digest: str) -> Callable[..., None]:
    """A file with this content gives the tensors of the state dict; its report ends with `note`.

    `as_from`: a state dict to compare with instead.
    """

    def check(content: object, note: str = "", as_from: State | None = None) -> None:
        wrapped = load(content)
        assert wrapped.digest == (load(as_from).digest if as_from else digest)
        assert wrapped.report.endswith(f"w.pth: {ALL_MATCHED}{note}")

    return check


@pytest.mark.parametrize(
    "keys",
    [
        *(("state_dict",), ("net",), ("ema",), ("state_dict_ema",)),
        ("checkpoint", "model", "state_dict"),
    ],
    ids=".".join,
)
def test_mappings_around_the_state_dict_are_opened(
    keys: tuple[str, ...], state: State, check_same: Callable[..., None]
) -> None:
    content: dict[str, object] = dict(state)
    for key in reversed(keys):
        content = {"epoch": 3, key: content, "optimizer": {"state": {0: {"step": 1}}}}
    check_same(content)


@pytest.mark.parametrize(
    "prefix",
    slow_after(
        2,
        [
            *("module.", "model.net.encoder.", "backbone.", "any_name."),
            *("module._orig_mod.", "module.module.", "_orig_mod."),
        ],
    ),
)
def test_a_prefix_that_all_names_share_is_taken_off_and_told(
    prefix: str, state: State, check_same: Callable[..., None]
) -> None:
    note = f", without the prefix {prefix}"
    check_same(under(prefix, state), note)
    check_same({"state_dict": under(prefix, state), "epoch": 3}, note)


@pytest.mark.parametrize(
    ("prefix", "beside", "note"),
    slow_after(
        2,
        [
            (
                "net.",
                {"criterion.weight": 2},
                ", without the prefix net., passed over 1 tensor (crit",
            ),
            ("module.", {"n_averaged": 1}, "prefix module., passed over 1 tensor (n_averaged)"),
            (
                *("module.", {"module.projection.0.weight": 2, "module.prototypes": 1}),
                "prefix module., passed over 2 tensors (projection, prototypes)",
            ),
            ("", {"fc.weight": 3}, "as many classes, passed over 1 tensor (fc)"),
        ],
    ),
)
def test_tensors_beside_the_network_are_passed_over_and_told(
    prefix: str, beside: dict[str, int], note: str, state: State, load: Load, digest: str
) -> None:
    content = under(prefix, state) | {name: torch.ones(size) for name, size in beside.items()}
    found = load({"state_dict": content, "hyper_parameters": {"lr": 0.1}})
    assert found.digest == digest
    assert note in found.report


@pytest.mark.parametrize(
    ("first", "second"),
    slow_after(
        2,
        [
            ("state_dict", "state_dict_ema"),
            ("model", "model_ema"),
            ("net", "ema"),
            ("module.encoder_q.", "module.encoder_k."),
            ("backbone.", "momentum_backbone."),
        ],
    ),
)
def test_of_a_network_and_its_running_copy_the_network_is_taken_and_told(
    first: str, second: str, state: State, load: Load, digest: str
) -> None:
    content: Any
    if first.endswith("."):
        content = {**under(second, changed(state)), **under(first, state)}
    else:
        content = {second: changed(state), first: state}
    found = load(content)
    assert found.digest == digest
    assert f"from {first} (not {second})" in found.report


def test_two_networks_of_equal_standing_are_refused_unless_they_are_the_same(
    state: State, load: Load
) -> None:
    with pytest.raises(WeightsError, match=f"hold 2 networks that fit {SMALL}: student, teacher"):
        load({"student": state, "teacher": changed(state)})
    assert len(load({"student": state, "teacher": state}).tensors) == COUNT


@pytest.mark.parametrize("value", [np.float64(0.7), np.float32(1), np.int64(3), np.bool_(True)])
def test_plain_values_beside_the_weights_are_no_obstacle(
    value: object, state: State, check_same: Callable[..., None]
) -> None:
    args = argparse.Namespace(lr=0.1, out=Path("runs"))
    check_same({"model": state, "args": args, "best": value})


def test_sparse_and_quantized_tensors_are_read(
    state: State, check_same: Callable[..., None]
) -> None:
    name = "features.0.0.weight"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch checks the one and deprecates the other
        check_same({**state, name: state[name].to_sparse()})
        odd = torch.quantize_per_tensor(state[name], 0.1, 0, torch.qint8)
        check_same({**state, name: odd}, as_from={**state, name: odd.dequantize()})


def test_old_files_and_reduced_precision_hold_the_same_weights(
    state: State, tmp_path: Path, backbone: Backbone, load: Load, digest: str
) -> None:
    half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    assert load(half).digest == load(rounded).digest != digest
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert load_pretrained(str(tmp_path / "old.pth"), backbone).digest == digest


def test_the_digest_changes_with_any_weight(state: State, load: Load) -> None:
    first, name = load(state), "features.5.block.1.1.running_var"
    state[name] = state[name].clone()
    state[name][-1] += 1e-6
    assert load(state).digest != first.digest


def test_a_path_may_begin_with_the_home_folder(
    state: State, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(state, tmp_path / "w.pth")
    assert len(load_pretrained("~/w.pth", backbone).tensors) == COUNT


@pytest.mark.parametrize(
    ("name", "head", "root", "left_out"),
    slow_after(
        3,
        [
            (SMALL, {"classifier.weight": (7, 576), "classifier.bias": (7,)}, "classifier", 4),
            (SMALL, {"classifier.0.weight": (7, 7), "classifier.3.bias": (4,)}, "classifier", 4),
            (SMALL, {**BELOW, HEAD[0]: (7, 1024), HEAD[1]: (7,)}, "classifier.3", 2),
            (SMALL, {**BELOW, HEAD[0]: (4, 1024), HEAD[1]: (7,)}, "classifier.3", 2),
            (SMALL, {**BELOW, HEAD[0]: (4, 1024)}, "classifier.3", 2),
            (SMALL, BELOW, "classifier.3", 2),
            ("resnet18", {"fc.1.weight": (7, 512), "fc.1.bias": (7,)}, "fc", 2),
            (
                "resnet18",
                {"fc.0.weight": (9, 512), "fc.3.weight": (7, 9), "fc.3.bias": (7,)},
                "fc",
                2,
            ),
            ("resnet18", {"fc.weight": (7, 512)}, "fc", 2),
            ("mobilenet_v2", {"classifier.weight": (7, 1280)}, "classifier", 2),
        ],
    ),
)
def test_a_head_of_any_form_is_left_out_whole(
    name: str,
    head: dict[str, tuple[int, ...]],
    root: str,
    left_out: int,
    tmp_path: Path,
) -> None:
    backbone = build_backbone(name, 4, 32, seed=0)
    state = backbone.model.state_dict()
    before = copy_state(backbone)
    own = [n for n in state if n.startswith(f"{root}.")]
    found = {n: t for n, t in state.items() if n not in own}
    found |= {n: torch.ones(shape) for n, shape in head.items()}
    pretrained = load_pretrained(saved(found, tmp_path / "w.pth"), backbone)
    assert pretrained.tensors.keys() == state.keys() - set(own)
    assert len(own) == left_out
    assert pretrained.report.endswith(f"left out {' and '.join(own)} (new classes)")
    pretrained.apply(backbone)
    assert changed_names(before, copy_state(backbone)) & set(own) == set()


def test_a_classifier_that_is_not_finite_is_left_out_and_told(state: State, load: Load) -> None:
    state["classifier.3.bias"] = state["classifier.3.bias"] * math.nan
    found = load(state)
    assert found.report.endswith("left out classifier.3.weight and classifier.3.bias (not finite)")
    assert all(tensor.isfinite().all() for tensor in found.tensors.values())


def test_batch_counters_that_an_old_file_lacks_are_not_missed(state: State, load: Load) -> None:
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    assert len(load(state).tensors) == len(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.0.weight": None}, r"features\.0\.0\.weight is missing.*pass weights of"),
        (
            {"features.0.1.bias": torch.zeros(3)},
            r"features\.0\.1\.bias is \(3,\), not \(16,\)",
        ),
        (
            {"features.0.se.weight": torch.zeros(3)},
            rf"features\.0\.se\.weight is not part of {SMALL}",
        ),
        (
            {f"features.extra{n}": torch.zeros(1) for n in range(6)},
            "extra3 is not .* and 2 more",
        ),
    ],
    ids=["missing", "misshaped", "unknown", "many"],
)
def test_any_other_mismatch_names_the_tensors(
    change: dict[str, Tensor | None], message: str, state: State, load: Load
) -> None:
    changed = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(WeightsError, match=rf"do not fit {SMALL}: .*{message}"):
        load(changed)


@pytest.mark.parametrize(
    ("names", "begin"),
    [
        (
            ("resnet.embedder.a.weight", "resnet.embedder.b.bias"),
            r"all begin with resnet\.embedder",
        ),
        (("layers.0", "out.bias"), "begin with layers, out"),
    ],
)
def test_names_of_another_library_are_told(names: tuple[str, ...], begin: str, load: Load) -> None:
    message = rf"the names of its 2 tensors {begin}.*, not with features: they fit none of"
    with pytest.raises(WeightsError, match=message):
        load({name: torch.zeros(3) for name in names})


def test_weights_of_another_backbone_name_the_backbone(
    tmp_path: Path, state: State, mobilenet: Backbone
) -> None:
    for prefix in ("", "module."):
        path = saved(under(prefix, state), tmp_path / "w.pth")
        with pytest.raises(
            WeightsError, match=rf"do not fit mobilenet_v2: .*pass -P backbone={SMALL}"
        ):
            load_pretrained(path, mobilenet)


def file_bytes(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


def zip_bytes(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


def tar_bytes() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))
    return buffer.getvalue()


SAFE = save({"a": torch.zeros(300)})
OLD = file_bytes(_use_new_zipfile_serialization=False)
KINDS = {
    "empty": (b"", "the file is empty"),
    "text": (b"hello world\n", "a text file, which begins 'hello world'"),
    "an index": (b'{"weight_map": {}}', "a text file, which begins "),
    "web page": (b"<html><body>404</body></html>", "a web page"),
    "other web page": (b"\xef\xbb\xbf\n  <!DOCTYPE html>\n<html>", "a web page"),
    "an answer of a store": (b'<?xml version="1.0"?><Error/>', "a web page"),
    "git lfs pointer": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "gzip": (gzip.compress(file_bytes()), "an archive packed with gzip"),
    "tar": (tar_bytes(), "a tar archive"),
    "zip": (
        zip_bytes("resnet18/w.pth", "resnet18/readme"),
        "a ZIP archive .* holds resnet18/w.pth",
    ),
    "empty zip": (zip_bytes(), "a ZIP archive .* holds nothing"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    "noise": (bytes(range(129, 256)) * 9, "neither a .safetensors nor a torch file"),
    "cut short": (file_bytes()[:300], "a torch file that is damaged or cut short"),
    "old, cut in the pickle": (OLD[:150], "a torch file that is damaged"),
    "old, cut in the data": (OLD[:-3], "a torch file that is damaged"),
    "a byte changed": (
        file_bytes().replace(b"torch\n", b"t\xffrch\n"),
        "a torch file that is damaged",
    ),
    "safetensors, cut short": (SAFE[:-9], "damaged or cut short"),
    "safetensors, cut in the header": (SAFE[:20], "damaged"),
}


@pytest.mark.parametrize("name", ["w.pth", "W.SAFETENSORS"])
@pytest.mark.parametrize(("content", "kind"), KINDS.values(), ids=KINDS)
def test_a_file_without_weights_is_called_what_it_is(
    content: bytes, kind: str, name: str, tmp_path: Path, backbone: Backbone
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightsError, match=rf"{name}: not a readable state dict \({kind}"):
        load_pretrained(str(tmp_path / name), backbone)


@pytest.mark.parametrize(
    "name", slow_after(2, ["w.pth", "weights", "w.safetensors", "W.SAFETENSORS", "w.bin"])
)
def test_what_a_file_is_does_not_hang_on_its_name(
    name: str, state: State, tmp_path: Path, backbone: Backbone, load: Load
) -> None:
    plain = load(state)
    for write in (save_file, saved):
        write(state, tmp_path / name)
        assert load_pretrained(str(tmp_path / name), backbone).digest == plain.digest


def test_a_torchscript_program_is_called_what_it_is(tmp_path: Path, backbone: Backbone) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "w.pt"))
    with pytest.raises(WeightsError, match=r"w\.pt: .*a TorchScript program, which is not run"):
        load_pretrained(str(tmp_path / "w.pt"), backbone)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1.0}}, "text", {}],
    ids=["list", "tensor", "numbers", "wrapped numbers", "text", "nothing"],
)
def test_a_file_without_a_state_dict_is_refused(content: object, load: Load) -> None:
    with pytest.raises(WeightsError, match=r"w\.pth: holds no state dict \(name -> tensor\)"):
        load(content)


@pytest.mark.parametrize(
    "dump", [torch.save, partial(pickle.dump, protocol=2)], ids=["torch", "pickle"]
)
def test_a_pickled_object_is_refused_and_not_run(
    dump: Callable[[object, Any], None], tmp_path: Path, backbone: Backbone
) -> None:
    victim = tmp_path / "made-by-the-pickle"

    class Harmful:
        def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
            return os.mkdir, (str(victim),)

    with (tmp_path / "w.pth").open("wb") as file:
        dump({"a": Harmful()}, file)
    with pytest.raises(WeightsError, match=r"w\.pth: not a readable .* code.* is not run"):
        load_pretrained(str(tmp_path / "w.pth"), backbone)
    assert not victim.exists()


def test_a_whole_model_is_refused(load: Load, backbone: Backbone) -> None:
    message = r"it holds an object of torchvision\.models\.mobilenetv3\.MobileNetV3, .* not run.*"
    with pytest.raises(WeightsError, match=rf"{message}torch\.save\(model\.state_dict"):
        load(backbone.model)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere.pth", "does not exist"),
        ("image_net", "does not exist"),
        ("~nobody-of-that-name/w.pth", "home directory"),
        ("/dev/null", "is not a file"),
    ],
)
def test_a_path_that_is_no_file_is_named(name: str, reason: str, backbone: Backbone) -> None:
    message = rf"weights={name}: neither imagenet, pretrained, tiny_imagenet, none.*{reason}"
    with pytest.raises(WeightsError, match=message):
        load_pretrained(name, backbone)


def test_a_misspelt_name_of_weights_brings_the_nearest_one(backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"not exist\): did you mean tiny_imagenet\?$"):
        load_pretrained("tiny_imagnet", backbone)
    with pytest.raises(WeightsError, match=r"not exist\): pass one of these or a \.pth"):
        load_pretrained("weights/mine.pth", backbone)


def test_a_folder_is_no_file(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"is a folder: pass the \.pth or \.safetensors file"):
        load_pretrained(str(tmp_path), backbone)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda _, v: v.to(torch.int8), "are of whole numbers"),
        (lambda _, v: v > 0, "are of whole numbers, truth values"),
        (lambda _, v: v.to(torch.complex64), "or complex numbers"),
        (lambda n, v: v - 9 if n.endswith("running_var") else v, "hold variances below zero"),
        (lambda n, v: v * 0 if n.endswith("running_var") else v, "variances that are all zero"),
        (lambda _, v: torch.zeros_like(v), "are all zeros"),
        (lambda _, v: v.to("meta"), "hold no values"),
        (lambda n, v: v * math.nan if n.endswith("0.0.weight") else v, "are not finite numbers"),
    ],
)
def test_values_that_no_training_leaves_are_refused(
    change: Callable[[str, Tensor], Tensor], why: str, state: State, load: Load
) -> None:
    changed = {n: change(n, v) if v.is_floating_point() else v for n, v in state.items()}
    with pytest.raises(WeightsError, match=why):
        load(changed)


class OtherNames(Net):
    """Matrices go by other names than `weight`: weight norm, and a bare one."""

    blocks: ClassVar = {**Net.blocks, "late": ["late", "mixed"]}

    def __init__(self, num_classes: int) -> None:
        super().__init__(num_classes)
        for part in (self.stem, self.early, self.late):
            nn.utils.parametrizations.weight_norm(part[0])
        self.mixed = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = self.late(self.early(self.stem(x)))
        return self.fc((x.transpose(1, 3) @ self.mixed).mean((1, 2)))


def test_learned_values_count_under_any_name(tmp_path: Path) -> None:
    own = build_backbone("tests.test_weights:OtherNames", 10, 32, seed=0)
    state = {n: t.clone() for n, t in own.model.state_dict().items()}
    assert not [n for n, t in state.items() if n.endswith(".weight") and t.dim() > 1][:-1]
    path = saved(state, tmp_path / "w.pth")
    assert "tensors matched" in load_pretrained(path, own).report
    zeros = {n: torch.zeros_like(t) if t.dim() > 1 else t for n, t in state.items()}
    with pytest.raises(WeightsError, match="are all zeros"):
        load_pretrained(saved(zeros, tmp_path / "zeros.pth"), own)


def test_a_byte_that_has_changed_since_is_a_damaged_file(
    state: State, tmp_path: Path, backbone: Backbone
) -> None:
    path = Path(saved(state, tmp_path / "w.pth"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="damaged or cut short"):
        load_pretrained(str(path), backbone)


# --- imagenet ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return publish(SMALL, tmp_path_factory.mktemp("published"))


@pytest.fixture
def set_url(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let torchvision look for the weights of the small backbone at another address."""
    import torchvision

    entry: Any = torchvision.models.get_model_weights(SMALL).DEFAULT
    return lambda url: monkeypatch.setattr(entry.value, "url", url)


def test_imagenet_weights_are_downloaded_once(
    published: Path,
    checkpoints: Path,
    set_url: Callable[[str], None],
    serve: Callable[..., str],
    backbone: Backbone,
) -> None:
    url = serve(partial(Quiet, directory=str(published.parent)))
    set_url(f"{url}/{published.name}")
    first = load_pretrained("imagenet", backbone)
    assert first.name == "imagenet"
    assert first.report.startswith(f"weights imagenet: {COUNT - 2} of {COUNT} tensors matched")
    assert [path.name for path in checkpoints.iterdir()] == [published.name]
    set_url(f"{CLOSED}/{published.name}")
    assert load_pretrained("imagenet", backbone).digest == first.digest


def test_imagenet_weights_put_where_the_message_says_are_used(
    published: Path,
    checkpoints: Path,
    set_url: Callable[[str], None],
    backbone: Backbone,
) -> None:
    set_url(f"{CLOSED}/{published.name}")
    message = (
        f"cannot download the imagenet weights of {SMALL} from {CLOSED}/{published.name} .*"
        f"put {published.name} into {checkpoints}, or pass -P weights=<a .pth or .safetensors "
        f"file of {SMALL}>, or -P backbone=resnet18 -P weights=tiny_imagenet"
    )
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77.0)  # as a user of the package may have done
    try:
        with pytest.raises(DownloadError, match=message):
            load_pretrained("imagenet", backbone)
        assert socket.getdefaulttimeout() == 77.0
    finally:
        socket.setdefaulttimeout(before)
    (checkpoints / published.name).write_bytes(published.read_bytes())
    assert len(load_pretrained("imagenet", backbone).tensors) == COUNT - 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("wrong digest", "invalid hash"), ("not found", "404"), ("not http", "put .* into")],
)
def test_a_download_that_goes_wrong_is_an_error_and_leaves_nothing(
    fault: str,
    reason: str,
    tmp_path: Path,
    checkpoints: Path,
    set_url: Callable[[str], None],
    serve: Callable[..., str],
    backbone: Backbone,
) -> None:
    name = f"{SMALL}-0badc0de.pth"
    if fault == "wrong digest":
        (tmp_path / name).write_bytes(b"something else")
    handler = NotHttp if fault == "not http" else partial(Quiet, directory=str(tmp_path))
    set_url(f"{serve(handler)}/{name}")
    with pytest.raises(DownloadError, match=f"cannot download the imagenet weights .*{reason}"):
        load_pretrained("imagenet", backbone)
    assert list(checkpoints.iterdir()) == []
    (checkpoints / name).write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=r"0badc0de\.pth is damaged .*delete it to fetch it"):
        load_pretrained("imagenet", backbone)


# --- torchvision's names -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generations(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two files of weights of MobileNet V2, as they are published."""
    folder = tmp_path_factory.mktemp("published")
    return [publish("mobilenet_v2", folder, seed) for seed in range(2)]


@pytest.fixture
def both_published(
    tmp_path: Path,
    generations: list[Path],
    checkpoints: Path,
    serve: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> dict[str, Path]:
    """A server with two generations of MobileNet V2's weights; publishes no others."""
    import torchvision

    url = serve(partial(Quiet, directory=str(tmp_path)))
    found = {}
    for path, entry in zip(generations, torchvision.models.MobileNet_V2_Weights, strict=True):
        found[entry.name] = Path(shutil.copy(path, tmp_path))
        monkeypatch.setattr(entry.value, "url", f"{url}/{found[entry.name].name}")
    return found


@pytest.fixture(scope="module")
def mobilenet() -> Backbone:
    return build_backbone("mobilenet_v2", 4, 32, seed=0)


@pytest.mark.slow
def test_weights_go_by_torchvisions_names(
    both_published: dict[str, Path], mobilenet: Backbone
) -> None:
    digests = {
        name: load_pretrained(str(path), mobilenet).digest for name, path in both_published.items()
    }
    assert len(set(digests.values())) == 2
    for name, digest in digests.items():
        written = (name, name.lower(), f"MobileNet_V2_Weights.{name}")
        assert {load_pretrained(word, mobilenet).digest for word in written} == {digest}
    latest = digests["IMAGENET1K_V2"]
    assert load_pretrained("imagenet", mobilenet).digest == latest
    assert load_pretrained("DEFAULT", mobilenet).digest == latest
    assert load_pretrained("IMAGENET1K_V1", mobilenet).report.startswith("weights IMAGENET1K_V1: ")


@pytest.mark.parametrize(
    "weights", ["IMAGENET1K_V3", "imagenet22k", "ResNet50_Weights.IMAGENET1K_V1"]
)
def test_an_unknown_name_lists_what_there_is(
    weights: str, both_published: dict[str, Path], mobilenet: Backbone
) -> None:
    message = f"{weights}: .*no such weights of mobilenet_v2: .* IMAGENET1K_V1, IMAGENET1K_V2, or"
    with pytest.raises(WeightsError, match=message):
        load_pretrained(weights, mobilenet)


@pytest.mark.parametrize(
    ("here", "asked"), [("IMAGENET1K_V1", "imagenet"), ("IMAGENET1K_V2", "IMAGENET1K_V1")]
)
def test_where_a_download_fails_another_file_of_the_model_is_named(
    here: str, asked: str, both_published: dict[str, Path], mobilenet: Backbone
) -> None:
    digest = load_pretrained(here, mobilenet).digest
    for path in both_published.values():
        path.unlink()
    message = (
        f"cannot download the {asked} weights of mobilenet_v2 .*"
        f"{both_published[here].name} is there: use it with -P weights={here}, or put "
    )
    with pytest.raises(DownloadError, match=message):
        load_pretrained(asked, mobilenet)
    assert load_pretrained(here, mobilenet).digest == digest


def test_a_typed_command_makes_paths_absolute_and_leaves_names_alone() -> None:
    for name in ("imagenet", "none", "IMAGENET1K_V1", "MobileNet_V2_Weights.IMAGENET1K_V2"):
        assert command_line("main", {"weights": name}).endswith(f" -P weights={name}")
    for typed in ("weights=w.pth", "blocks=b.yaml", "storage=a.log", "space=s"):
        key, _, name = typed.partition("=")
        assert command_line("tune", {key: name}).endswith(f" -P {key}={Path.cwd()}/{name}")
    for typed in ("blocks=auto", "storage=sqlite:///optuna.db", "labels=", "space="):
        key, _, name = typed.partition("=")
        assert command_line("tune", {key: name}).endswith(f" -P {typed}" + "''" * (not name))


def test_a_csv_file_of_this_folder_is_not_taken_for_one_beside_the_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder of images may stand in a file of settings."""
    monkeypatch.chdir(tmp_path)
    Path("l.csv").write_text("file,label")
    assert command_line("start", {"labels": "l.csv"}).endswith(f" -P labels={tmp_path}/l.csv")
    beside = {"labels": "beside_the_images.csv"}  # the folder of which is named in a file
    assert command_line("start", beside).endswith(" -P labels=beside_the_images.csv")


def test_a_csv_file_in_the_folder_of_images_is_named_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file,label")
    assert command_line("main", {"data": str(tmp_path), "labels": "mine.csv"}).endswith(
        " -P labels=mine.csv"
    )


# --- before images are read ----------------------------------------------------------------------


@pytest.fixture
def unreadable(image_folder: Path) -> Path:
    """Images of which none can be decoded."""
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"no image")
    return image_folder


def test_faults_of_weights_come_before_any_image_is_read(
    command: Command,
    unreadable: Path,
    tmp_path: Path,
    checkpoints: Path,
    set_url: Callable[[str], None],
    state: State,
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_url(f"{CLOSED}/{SMALL}-0badc0de.pth")
    (tmp_path / "empty.pth").write_bytes(b"")
    state["features.0.0.weight"] = state["features.0.0.weight"] * math.nan
    for weights, words in (
        ("IMAGENET1K_V7", "no such weights"),
        ("imagenet", "cannot download"),
        (str(tmp_path / "empty.pth"), "the file is empty"),
        (saved(state, tmp_path / "nan.pth"), "not finite numbers"),
        (saved({"a": torch.zeros(1)}, tmp_path / "other.pth"), "do not fit"),
    ):
        assert command("stage1", backbone=SMALL, weights=weights) == 2
        assert words in capsys.readouterr().err
    for entry_point in ("main", "tune", "decide", "compare"):
        assert command(entry_point, weights="nowhere.pth", test_per_class="2") == 2
        assert "nowhere.pth does not exist" in capsys.readouterr().err
        assert command(entry_point, test_per_class="2") == 2
        assert "cannot read" in capsys.readouterr().err


def test_what_must_be_fetched_comes_after_what_may_be_wrong_at_once(
    command: Command, checkpoints: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert (
        command("stage1", backbone=SMALL, weights="imagenet", data=str(tmp_path / "nowhere")) == 2
    )
    assert "nowhere" in capsys.readouterr().err
    assert not checkpoints.exists()


# --- real files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "of", "matched"),
    slow_after(
        1,
        [
            ("resnet18-imagenet-mlnet.safetensors", "resnet18", "100 of 122"),
            ("mobilenet_v2-b0353104.pth", "mobilenet_v2", "312 of 314"),
            ("resnet18-tiny-imagenet-64px.safetensors", "resnet18", "120 of 122"),
        ],
    ),
)
def test_real_files_match_under_any_prefix(
    name: str, of: str, matched: str, tmp_path: Path
) -> None:
    path = SHARED / "weights" / name
    if not path.is_file():
        pytest.skip(f"real weights are not at {path}")
    backbone = build_backbone(of, 10, 32, seed=0)
    plain = load_pretrained(str(path), backbone)
    assert f"{matched} tensors matched, left out " in plain.report
    is_old = matched == "100 of 122"
    assert ("bn1.num_batches_tracked and 19 more not in the file" in plain.report) == is_old
    state = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
    moved = saved({"model": under("module._orig_mod.", state)}, tmp_path / "moved.safetensors")
    assert load_pretrained(moved, backbone).digest == plain.digest


# --- networks of one's own -----------------------------------------------------------------------


def test_the_random_head_of_a_ready_made_network_is_not_taken_for_two_classes() -> None:
    heads = []
    for seed in (1, 2):
        backbone = build_backbone("tests.networks:ready_made", 2, 32, seed=seed)
        pretrained = load_pretrained("pretrained", backbone)
        pretrained.apply(backbone)
        heads.append(backbone.model.state_dict()["fc.weight"])
        assert "left out fc.weight and fc.bias" in pretrained.report
        assert pretrained.tensors["stem.1.weight"].eq(0.125).all()
    assert not torch.equal(*heads)


def test_a_network_of_two_classes_alone_may_have_weights() -> None:
    backbone = build_backbone("tests.networks:ready_made_for_two", 2, 32, seed=3)
    pretrained = load_pretrained("pretrained", backbone)
    assert pretrained.tensors["stem.1.weight"].eq(0.125).all()
    assert "left out fc.weight and fc.bias" in pretrained.report


def test_a_second_classifier_of_other_classes_does_not_make_weights_misfit(
    tmp_path: Path,
) -> None:
    name = "tests.networks:AuxiliaryHead"
    state = build_backbone(name, 5, 32, seed=1).model.state_dict()
    backbone = build_backbone(name, 4, 32, seed=0)
    pretrained = load_pretrained(saved(state, tmp_path / "w.pth"), backbone)
    assert state.keys() - pretrained.tensors.keys() == {
        f"{layer}.{kind}" for layer in ("aux", "fc") for kind in ("weight", "bias")
    }
    again = build_backbone(name, 5, 32, seed=0)
    assert load_pretrained(str(tmp_path / "w.pth"), again).tensors.keys() == state.keys()


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_one_byte_are_read_as_floats(kind: torch.dtype, tmp_path: Path) -> None:
    state = build_backbone("tests.networks:Net", 4, 32, seed=1).model.state_dict()
    small = {n: t.to(kind) if t.is_floating_point() else t for n, t in state.items()}
    save_file(small, tmp_path / "w.safetensors")
    backbone = build_backbone("tests.networks:Net", 4, 32, seed=0)
    pretrained = load_pretrained(str(tmp_path / "w.safetensors"), backbone)
    assert pretrained.tensors.keys() == state.keys()
    for name, tensor in pretrained.tensors.items():
        assert torch.equal(tensor, small[name].to(tensor.dtype))


# --- names and numbers of torchvision's own files ------------------------------------------------


def as_published(name: str, state: State) -> State:
    """The state under the names that torchvision's files have (its `_load…state_dict` says so)."""
    older = {
        "vit_b_16": [(r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")],
        "densenet121": [(r"(denselayer\d+\.[a-z]+)([12])\.", r"\1.\2.")],
    }
    for now, then in older.get(name, []):
        state = {re.sub(now, then, key): tensor for key, tensor in state.items()}
    return state


@pytest.mark.parametrize(
    "name", slow_after(0, ["densenet121", "vit_b_16", "swin_t", "swin_v2_t", "maxvit_t"])
)
def test_files_of_every_family_of_torchvision_are_read_as_they_are_published(
    name: str, tmp_path: Path
) -> None:
    """Older names in them, and tables of whole numbers, as Swin's of relative positions."""
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.get_model(name).state_dict()
    older = as_published(name, state)
    assert (older.keys() != state.keys()) == (name in ("densenet121", "vit_b_16"))
    path = saved(older, tmp_path / "w.pth")
    backbone = build_backbone(name, 4, 224, seed=1)
    pretrained = read_weights(path, name, 224).fitted(backbone)
    assert f"of {len(state)} tensors matched" in pretrained.report
    assert len(pretrained.tensors) >= len(state) - 2
    for key, tensor in pretrained.tensors.items():
        assert torch.equal(tensor, state[key]), key


def test_whole_numbers_where_a_network_has_floats_are_refused(tmp_path: Path) -> None:
    backbone = build_backbone("tests.networks:Net", 4, 32, seed=0)
    state = {n: t.long() for n, t in backbone.model.state_dict().items()}
    with pytest.raises(WeightsError, match="are of whole numbers"):
        load_pretrained(saved(state, tmp_path / "w.pth"), backbone)
