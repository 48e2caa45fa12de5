"""Weights that fit are taken, a classifier of another size is left out, all else is refused."""

from __future__ import annotations

import io
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.backbones import Backbone, build_backbone
from pipeline.errors import DownloadError, WeightsError
from pipeline.weights import STARTER_SHA256, load_pretrained
from tests.served import NotHttp, Quiet, publish

SMALL = "mobilenet_v3_small"
HEAD = ("classifier.3.weight", "classifier.3.bias")
COUNT = 244
CLOSED = "http://127.0.0.1:1"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return build_backbone(SMALL, 4, seed=0)


@pytest.fixture(scope="module")
def other_state() -> State:
    """A fitting state dict with values of its own."""
    return build_backbone(SMALL, 4, seed=1).model.state_dict()


@pytest.fixture
def state(other_state: State) -> State:
    return dict(other_state)


def saved(state: object, path: Path) -> str:
    torch.save(state, path)
    return str(path)


# --- what comes with the package -----------------------------------------------------------------


def test_tiny_imagenet_matches_all_but_the_classifier() -> None:
    pretrained = load_pretrained("tiny_imagenet", build_backbone("resnet18", 10, seed=0))
    assert pretrained.report == (
        "weights tiny_imagenet: 120 of 122 tensors matched, left out fc.weight and fc.bias "
        "(new classes)"
    )
    assert len(pretrained.tensors) == 120
    assert len(pretrained.digest) == len(STARTER_SHA256) == 64
    assert pretrained.tensors["conv1.weight"].dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet34", SMALL])
def test_tiny_imagenet_is_for_resnet18_alone(name: str) -> None:
    with pytest.raises(WeightsError, match=f"are for resnet18, got backbone {name}: pass -P back"):
        load_pretrained("tiny_imagenet", build_backbone(name, 10, seed=0))


def test_none_leaves_every_tensor_as_it_is(backbone: Backbone) -> None:
    pretrained = load_pretrained("none", backbone)
    assert (pretrained.name, pretrained.digest, pretrained.tensors) == ("none", "none", {})
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    pretrained.apply(backbone)
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, before[name])


# --- files ---------------------------------------------------------------------------------------


def test_applied_weights_are_those_of_the_file(state: State, tmp_path: Path) -> None:
    backbone = build_backbone(SMALL, 4, seed=0)
    pretrained = load_pretrained(saved(state, tmp_path / "w.pth"), backbone)
    assert pretrained.report.endswith(f"{COUNT} of {COUNT} tensors matched")
    pretrained.apply(backbone)
    for name, tensor in backbone.model.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def as_module(state: State) -> State:
    return {f"module.{name}": tensor for name, tensor in state.items()}


@pytest.mark.parametrize(
    "wrap",
    [
        dict,
        as_module,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": state, "optimizer": {"lr": 0.1}},
        lambda state: {"state_dict": as_module(state)},
    ],
    ids=["plain", "module.", "state_dict", "model_state_dict", "model", "both"],
)
def test_wrappers_are_taken_off(
    wrap: Callable[[State], object], state: State, tmp_path: Path, backbone: Backbone
) -> None:
    plain = load_pretrained(saved(state, tmp_path / "plain.pth"), backbone)
    wrapped = load_pretrained(saved(wrap(state), tmp_path / "wrapped.pth"), backbone)
    assert wrapped.digest == plain.digest
    assert len(wrapped.tensors) == COUNT


@pytest.mark.parametrize("kind", ["safetensors", "old", "half precision"])
def test_other_kinds_of_file_hold_the_same_weights(
    kind: str, state: State, tmp_path: Path, backbone: Backbone
) -> None:
    if kind == "half precision":
        state = {k: v.bfloat16().float() if v.is_floating_point() else v for k, v in state.items()}
    plain = load_pretrained(saved(state, tmp_path / "plain.pth"), backbone)
    path = tmp_path / "other.pth"
    if kind == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif kind == "old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    else:
        half = {k: v.bfloat16() if v.is_floating_point() else v for k, v in state.items()}
        torch.save(half, path)
    assert load_pretrained(str(path), backbone).digest == plain.digest


def test_the_digest_changes_with_any_weight(
    state: State, tmp_path: Path, backbone: Backbone
) -> None:
    first = load_pretrained(saved(state, tmp_path / "a.pth"), backbone)
    name = "features.5.block.1.1.running_var"
    state[name] = state[name].clone()
    state[name][-1] += 1e-6
    assert load_pretrained(saved(state, tmp_path / "b.pth"), backbone).digest != first.digest


def test_a_path_may_begin_with_the_home_folder(
    state: State, tmp_path: Path, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    saved(state, tmp_path / "w.pth")
    assert len(load_pretrained("~/w.pth", backbone).tensors) == COUNT


@pytest.mark.parametrize("fault", ["another size", "another bias", "no head", "no bias"])
def test_a_head_that_does_not_fit_is_left_out_whole(
    fault: str, state: State, tmp_path: Path
) -> None:
    weight, bias = HEAD
    if fault == "another size":
        state[weight], state[bias] = torch.zeros(7, 1024), torch.zeros(7)
    elif fault == "another bias":
        state[bias] = torch.zeros(7)
    else:
        del state[bias]
        if fault == "no head":
            del state[weight]
    backbone = build_backbone(SMALL, 4, seed=0)
    before = [backbone.model.state_dict()[name].clone() for name in HEAD]
    pretrained = load_pretrained(saved(state, tmp_path / "w.pth"), backbone)
    assert pretrained.report.endswith(
        f"{COUNT - 2} of {COUNT} tensors matched, left out {weight} and {bias} (new classes)"
    )
    pretrained.apply(backbone)
    for name, old in zip(HEAD, before, strict=True):
        assert torch.equal(backbone.model.state_dict()[name], old)


def test_batch_counters_that_an_old_file_lacks_are_not_missed(
    state: State, tmp_path: Path, backbone: Backbone
) -> None:
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    pretrained = load_pretrained(saved(state, tmp_path / "w.pth"), backbone)
    assert len(pretrained.tensors) == len(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features.0.0.weight": None}, r"features\.0\.0\.weight is missing"),
        (
            {"features.0.1.bias": torch.zeros(3)},
            r"features\.0\.1\.bias is \(3,\), not \(16,\)",
        ),
        (
            {"fc.weight": torch.zeros(3)},
            rf"fc\.weight is not part of {SMALL}: pass -P backbone=",
        ),
        ({"classifier.0.weight": torch.zeros(7, 7)}, r"classifier\.0\.weight is \(7, 7\)"),
        ({f"extra{n}": torch.zeros(1) for n in range(6)}, "extra3 is not .* and 2 more"),
    ],
    ids=["missing", "misshaped", "unknown", "lower linear layer", "many"],
)
def test_any_other_mismatch_names_the_tensors(
    change: dict[str, Tensor | None],
    message: str,
    state: State,
    tmp_path: Path,
    backbone: Backbone,
) -> None:
    changed = {k: v for k, v in (state | change).items() if v is not None}
    with pytest.raises(WeightsError, match=rf"do not fit {SMALL}: .*{message}"):
        load_pretrained(saved(changed, tmp_path / "w.pth"), backbone)


def file_bytes(**options: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3), "b": torch.ones(2)}, buffer, **options)
    return buffer.getvalue()


DAMAGED = {
    "empty": b"",
    "text": b"hello world\n",
    "web page": b"<html><body>404</body></html>",
    "git lfs pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "cut short": file_bytes()[:300],
    "old, cut in the pickle": file_bytes(_use_new_zipfile_serialization=False)[:150],
    "old, cut in the data": file_bytes(_use_new_zipfile_serialization=False)[:-3],
    "a byte changed": file_bytes().replace(b"torch\n", b"t\xffrch\n"),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_named(
    content: bytes, suffix: str, tmp_path: Path, backbone: Backbone
) -> None:
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=rf"weights=.*w{suffix}: not a readable state dict \("):
        load_pretrained(str(path), backbone)


@pytest.mark.parametrize(
    "content",
    [[torch.zeros(2)], torch.zeros(2), {"epoch": 3}, {"state_dict": {"a": 1.0}}, "text"],
    ids=["list", "tensor", "numbers", "wrapped numbers", "text"],
)
def test_a_file_without_a_state_dict_is_refused(
    content: object, tmp_path: Path, backbone: Backbone
) -> None:
    with pytest.raises(WeightsError, match=r"w\.pth: holds no state dict \(name -> tensor\)"):
        load_pretrained(saved(content, tmp_path / "w.pth"), backbone)


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
    with pytest.raises(WeightsError, match=r"w\.pth: not a readable state dict"):
        load_pretrained(str(tmp_path / "w.pth"), backbone)
    assert not victim.exists()


def test_a_whole_model_is_refused(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"torch\.save\(model\.state_dict\(\), path\)"):
        load_pretrained(saved(backbone.model, tmp_path / "w.pth"), backbone)


@pytest.mark.parametrize("name", ["nowhere.pth", "image_net"])
def test_a_path_that_is_no_file_is_named(name: str, tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"weights=.*neither imagenet, tiny_imagenet, none nor"):
        load_pretrained(str(tmp_path / name), backbone)


def test_a_folder_is_no_file(tmp_path: Path, backbone: Backbone) -> None:
    with pytest.raises(WeightsError, match=r"is a folder: pass the \.pth or \.safetensors file"):
        load_pretrained(str(tmp_path), backbone)


def test_values_that_are_not_finite_are_refused(tmp_path: Path, backbone: Backbone) -> None:
    state = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    name = next(name for name in state if name.endswith("weight"))
    state[name].view(-1)[0] = float("nan")
    with pytest.raises(WeightsError, match="hold values that are not finite numbers"):
        load_pretrained(saved(state, tmp_path / "w.pth"), backbone)


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


@pytest.fixture
def users_timeout() -> Iterator[float]:
    """A default timeout for sockets that somebody else has set."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77.0)
    yield 77.0
    socket.setdefaulttimeout(before)


def test_imagenet_weights_put_where_the_message_says_are_used(
    published: Path,
    checkpoints: Path,
    set_url: Callable[[str], None],
    users_timeout: float,
    backbone: Backbone,
) -> None:
    set_url(f"{CLOSED}/{published.name}")
    message = (
        f"cannot download the imagenet weights of {SMALL} from {CLOSED}/{published.name} .*"
        f"put {published.name} into {checkpoints}, or use -P preset=digits"
    )
    with pytest.raises(DownloadError, match=message):
        load_pretrained("imagenet", backbone)
    assert socket.getdefaulttimeout() == users_timeout
    (checkpoints / published.name).write_bytes(published.read_bytes())
    assert len(load_pretrained("imagenet", backbone).tensors) == COUNT - 2


def test_a_local_file_with_another_digest_is_refused(
    checkpoints: Path, set_url: Callable[[str], None], backbone: Backbone
) -> None:
    set_url(f"{CLOSED}/{SMALL}-0badc0de.pth")
    checkpoints.mkdir(parents=True)
    (checkpoints / f"{SMALL}-0badc0de.pth").write_bytes(b"cut short")
    with pytest.raises(WeightsError, match=r"0badc0de\.pth is damaged .*delete it to fetch it"):
        load_pretrained("imagenet", backbone)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [("wrong digest", "invalid hash"), ("not found", "404"), ("not http", "preset=digits")],
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
