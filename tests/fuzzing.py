"""Damaged bytes for everything that reads bytes, for the tests and for `benchmarks/fuzz.py`.

A target takes whole content, and a reader that takes damaged content: the reader works, or raises
`PipelineError`, or for the model's server answers with an error. Whatever else is raised is a
fault of ours.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from safetensors.torch import save

from pipeline.data.base import Unreadable, decode_image
from pipeline.data.reading import read_images
from pipeline.errors import PipelineError
from pipeline.model.networks import build_network
from pipeline.settings.request import Request
from pipeline.settings.schedules import schedule_of
from pipeline.settings.search_space import read_space
from pipeline.weights.pretrained import read_weights
from tests.bad_inputs import within
from tests.conftest import class_image
from tests.helpers import fill, opened

Damage = tuple[str, float, float, bytes]
"""What is done, where from and where to (as shares of the content), and with which bytes."""
_NASTY = (
    *(b"\0", b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80" * 4, b"-1", b"99999999999", b"nan", b"\n"),
    *(b"{", b"[" * 300, b'"', b"*a", b"&a ", b": ", b"!!python/name:os.system ", b"\xed\xa0\x80"),
)
"""Bytes that readers stumble over."""
LIMIT_S, LONGEST = 60, 5000
"""Seconds that a reader may take, characters that a line may have."""
DAMAGES = st.lists(
    st.tuples(
        st.sampled_from(("flip", "cut", "insert", "put", "swap", "repeat", "end")),
        st.floats(0, 1, exclude_max=True),
        st.floats(0, 1, exclude_max=True),
        st.one_of(st.sampled_from(_NASTY), st.binary(min_size=1, max_size=8)),
    ),
    min_size=1,
    max_size=4,
)


def damaged(content: bytes, damages: list[Damage]) -> bytes:
    """The content after each damage in turn."""
    for kind, start, stop, new in damages:
        size = len(content)
        a, b = sorted((int(start * size), int(stop * size)))
        inside = content[a:b]
        match kind:
            case "flip":
                turned = bytes(byte ^ new[0] for byte in content[a : a + len(new)])
                content = content[:a] + turned + content[a + len(new) :]
            case "cut":
                content = content[:a] + content[b:]
            case "insert":
                content = content[:a] + new + content[a:]
            case "put":
                content = content[:a] + new + content[a + len(new) :]
            case "swap":
                half = len(inside) // 2
                content = content[:a] + inside[half:] + inside[:half] + content[b:]
            case "repeat":
                content = content[:b] + inside[:10_000] + content[b:]
            case _:
                content = content[:b]
    return content


@dataclass(frozen=True)
class Target:
    """Something that reads bytes: whole contents by name, and what is done with damaged ones."""

    whole: Mapping[str, bytes]
    read: Callable[[str, bytes], object]


def targets(folder: Path) -> dict[str, Target]:
    """What a person hands over as a file, read in this folder."""
    return {
        "image": Target(_images(), lambda name, content: decode_image(content, name)),
        "parquet": Target({"train-0.parquet": _parquet()}, _file_of(folder / "pq", _open)),
        "labels": _labels(folder / "csv"),
        "weights": Target(_weights(), _file_of(folder / "weights", _read_weights)),
        "yaml": Target(_YAML, _file_of(folder / "yaml", _read_yaml)),
    }


def survives(target: Target, name: str, damages: list[Damage]) -> str:
    """How damaged content is taken: `read` or `refused`. Any other fault is raised."""
    try:
        with within(LIMIT_S):
            found = target.read(name, damaged(target.whole[name], damages))
    except PipelineError as err:
        lines = str(err).splitlines()
    else:
        return "refused" if isinstance(found, Unreadable) else "read"
    assert lines
    assert max(map(len, lines)) < LONGEST
    return "refused"


def _file_of(folder: Path, read: Callable[[Path], None]) -> Callable[[str, bytes], None]:
    def write_and_read(name: str, content: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        read(folder / name)

    return write_and_read


# --- what is read --------------------------------------------------------------------------------


def _images() -> dict[str, bytes]:
    found = {}
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO"):
        buffer = io.BytesIO()
        picture = class_image(0, 0)
        exif = picture.getexif()
        exif[0x0112] = 6
        picture.save(buffer, kind, **({"exif": exif} if kind in ("JPEG", "WEBP", "PNG") else {}))
        found[kind] = buffer.getvalue()
    return found


def _parquet() -> bytes:
    cells = [{"bytes": _images()["JPEG"], "path": None}] * 2 + [
        {"bytes": _images()["PNG"], "path": "x.png"}
    ] * 2
    buffer = io.BytesIO()
    table = pd.DataFrame({"image": cells, "label": [0, 0, 1, 1]})
    table.to_parquet(buffer)
    return buffer.getvalue()


def _open(path: Path) -> None:
    source = opened(path.parent)
    read_images(source.pool, np.arange(len(source.pool.labels)), 8)


def _labels(folder: Path) -> Target:
    fill(folder / "set", "a", "b", count=3)
    rows = "".join(f"{label}/{n}.png,{label},{n}\n" for label in "ab" for n in range(3))

    def read(name: str, content: bytes) -> None:
        (folder / name).write_bytes(content)
        opened(folder / "set", labels=str(folder / name))

    text = f"file,label,patient\n{rows}"
    tabs = text.replace(",", "\t").encode("utf-16")
    return Target({"labels.csv": text.encode(), "labels.tsv": tabs}, read)


_NETWORK = "shufflenet_v2_x0_5"
"""The smallest of torchvision's networks: damage is read many times a second."""


def _weights() -> dict[str, bytes]:
    """All weights, where most damage hits values, and a few, where most hits what names them."""
    state = build_network(_NETWORK, 2, 32, seed=0).state_dict()
    every = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    few = {name: tensor for name, tensor in state.items() if name.startswith("conv1")}
    new, old = io.BytesIO(), io.BytesIO()
    torch.save({"state_dict": every, "epoch": 3}, new)
    torch.save(few, old, _use_new_zipfile_serialization=False)
    return {
        "w.safetensors": save(every),
        "few.safetensors": save(few),
        "new.pth": new.getvalue(),
        "old.pth": old.getvalue(),
    }


def _read_weights(path: Path) -> None:
    read_weights(str(path), _NETWORK, 32)


_YAML = {
    "config.yaml": b"epochs: 3\nlr: 1.0e-3\ndata: digits\nstage1: {lr: 0.1, augment: light}\n"
    b"stage2.epochs: 4\nmean: 0.1,0.2,0.3\ntrain_per_class: auto\n",
    "space.yaml": b"lr: {low: 1.0e-4, high: 1.0e-2, log: true}\naugment: [none, light]\n"
    b"epochs: {low: 5, high: 20, step: 5}\n",
    "schedule.yaml": b"words: all of it\nstages: [[head], [head, 1], continued]\n",
}


def _read_yaml(path: Path) -> None:
    kind = path.stem
    if kind == "space":
        read_space(path)
    elif kind == "schedule":
        schedule_of(str(path))
    else:
        Request.read({"config": str(path)}).settings()


# --- what the model's server is sent -------------------------------------------------------------

JSON, CSV = "application/json", "text/csv"


def bodies() -> Iterator[tuple[str, bytes, str]]:
    """A request in every format: its name, its body, its content type."""
    row = base64.b64encode(_images()["PNG"]).decode()
    bad = base64.b64encode(b"no image").decode()
    formats = {
        "dataframe_split": {"columns": ["image"], "data": [[row], [bad], [None]]},
        "dataframe_records": [{"image": row}, {"image": 3}],
        "instances": [{"image": row}, {"image": bad}],
        "inputs": {"image": [row, bad]},
    }
    for name, content in formats.items():
        yield name, json.dumps({name: content}).encode(), JSON
    yield "csv", f"id,image\n7,{row}\n8,{bad}\n".encode(), CSV


def is_an_answer(found: Mapping[str, object]) -> bool:
    """Predictions, each with its error or without, or one sentence and the status of a refusal."""
    if "predictions" in found:
        return True
    with suppress(TypeError):
        return int(str(found["status"])) in (400, 415, 503) and bool(found["message"])
    return False
