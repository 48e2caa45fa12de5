"""Files that a person might hand over by mistake, or to do harm: made once for the table."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

from tests.conftest import class_image
from tests.helpers import fill

_BOMB = "".join(
    f"x{level}: &x{level} [{', '.join([f'*x{level - 1}'] * 9)}]\n" if level else "x0: &x0 [lol]\n"
    for level in range(12)
)
"""Nine to the power of eleven words in a few lines."""
_DEEP = f"lr: {'[' * 400}{']' * 400}\n"
TEXTS: Mapping[str, str | bytes] = {
    "file.txt": "hello\n",
    "garbage.db": b"no database " * 500,
    # YAML
    "bin.yaml": bytes(range(128, 256)) * 4,
    "pytag.yaml": "lr: !!python/object/apply:os.system ['touch PWNED']\n",
    "list.yaml": "- lr\n- 1\n",
    "scalar.yaml": "lr\n",
    "deep.yaml": _DEEP,
    "self.yaml": "lr: &a [*a]\n",
    "selfmap.yaml": "stage1: &a\n  lr: *a\n",
    "nul.yaml": 'data: "a\\0b"\n',
    "nulcache.yaml": 'cache_dir: "a\\0b"\n',
    "nulweights.yaml": 'weights: "a\\0b"\n',
    "nullabels.yaml": 'labels: "a\\0b"\n',
    "nonekey.yaml": "null: 1\n",
    "date.yaml": "data: 2020-01-01\n",
    "nest.yaml": "stage1:\n  lr: {a: 1}\n",
    "nest_twice.yaml": "stage1:\n  lr:\n    lr:\n      lr: 1\n",
    "surrogate.yaml": 'data: "\\ud800"\n',
    "tab.yaml": "lr:\t1\n\tepochs: 2\n",
    "stage9.yaml": "stage9: {lr: 1.0e-3}\n",
    "nullvalue.yaml": "epochs:\n",
    "big.yaml": "seed: 99999999999999999999999\n",
    "long_int.yaml": f"seed: {'9' * 5000}\n",
    "config_in.yaml": "config: other.yaml\n",
    "bomb_value.yaml": f"{_BOMB}lr: *x11\n",
    "bomb_data.yaml": f"{_BOMB}data: *x11\n",
    "bomb_keys.yaml": _BOMB,
    "dup.yaml": "epochs: 1\nepochs: 2\n",
    "dup_stage.yaml": "stage1:\n  lr: 0.1\n  lr: 0.2\n",
    "dup_both.yaml": "stage1.lr: 0.1\nstage1: {lr: 0.2}\n",
    "listkey.yaml": "[lr, x]: 1\n",
    "two_documents.yaml": "lr: 0.1\n---\nlr: 0.2\n",
    "utf16.yaml": "lr: 0.1\n".encode("utf-16"),
    "unclosed.yaml": "lr: [1, 2\n",
    "unknown_tag.yaml": "lr: !rate 1\n",
    "anchor_missing.yaml": "lr: *nowhere\n",
    "set.yaml": "augment: !!set {light, strong}\n",
    "binary.yaml": "data: !!binary aGVsbG8=\n",
    "empty.yaml": "",
    "bad_schedule.yaml": "stages: [[head], [nowhere]]\n",
    # search spaces
    "space_bomb.yaml": f"{_BOMB}lr: *x11\n",
    "space_bomb_choices.yaml": f"{_BOMB}optimizer: *x11\n",
    "sp_reversed.yaml": "lr: {low: 1.0, high: 0.1}\n",
    "sp_log0.yaml": "weight_decay: {low: 0, high: 0.1, log: true}\n",
    "sp_unknown.yaml": "lrr: {low: 0.1, high: 1.0}\n",
    "sp_twice.yaml": "augment: [none, none]\n",
    "sp_key_twice.yaml": "lr: [0.1, 0.2]\nlr: [0.3, 0.4]\n",
    "sp_text.yaml": "lr: {low: a, high: 1}\n",
    "sp_nan.yaml": "lr: {low: .nan, high: 1}\n",
    "sp_listkey.yaml": "? [lr, x]\n: {low: 0.1, high: 1}\n",
    "sp_self.yaml": "lr: &a {low: *a, high: 1}\n",
    "sp_unhashable.yaml": "? {lr: x}\n: {low: 0.1, high: 1}\n",
    "sp_choice_list.yaml": "augment: [[none], light]\n",
    "sp_negative.yaml": "epochs: {low: -5, high: 3}\n",
    "sp_step.yaml": "epochs: {low: 1, high: 5, step: 3}\n",
    # lines of stages
    "lines_junk.txt": "nothing of the kind\n",
    "lines_nan.txt": "Stage-1 Best results: Train Loss: nan | Val Loss: nan | Train Acc: nan%\n",
    "lines_one.txt": "Stage-1 Best results: Train Loss: 0.1 | Val Loss: 0.2 | Train Acc: 90.00% | "
    "Val Acc: 80.00%\n",
    # labels
    "good.csv": "file,label\na/0.png,a\na/1.png,a\nb/0.png,b\nb/1.png,b\n",
    "missing_file.csv": "file,label\na/0.png,a\nnowhere.png,b\n",
    "no_columns.csv": "foo,bar\n1,2\n",
    "empty.csv": "",
    "binary.csv": bytes(range(256)),
    "outside.csv": "file,label\n../one/a/0.png,a\n/etc/passwd,b\n",
    "one_class.csv": "file,label\na/0.png,a\na/1.png,a\n",
    "nul.csv": "file,label\na/0.png\0,a\nb/0.png,b\n",
    # weights
    "junk.safetensors": b"\xff" * 300,
    "header.safetensors": struct.pack("<Q", 1 << 40) + b"{}",
    "zero.pth": b"",
    "text.pth": "conv1.weight: 1\n",
    "page.pth": "<!doctype html><html>sign in</html>\n",
    "archive.pth": b"\x1f\x8b" + bytes(200),
    "junk.parquet": b"no parquet at all " * 20,
}


class _Evil:
    """Would leave a file where a pickle of it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch PWNED",)


def make_files(root: Path) -> None:
    """Every file and folder that the table names below `@/`."""
    for name, content in TEXTS.items():
        data = content if isinstance(content, bytes) else content.encode()
        (root / name).write_bytes(data)
    _make_folders(root)
    _make_parquet(root)
    _make_weights(root)


def _png(*, width: int = 8, height: int = 8) -> bytes:
    """A PNG file that says it has that size, with hardly any bytes in it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(1000))), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _make_folders(root: Path) -> None:
    (root / "empty").mkdir()
    fill(root / "ok", "a", "b", count=10)
    fill(root / "one", "a", count=3)
    fill(root / "few", "a", "b", count=2)
    fill(root / "label", "a", "label", count=10)
    fill(root / "no_test", "a", "b", count=10)
    fill(root / "unknown_class", "train/a", "train/b", "test/a", "test/zzz", count=10)
    image = (root / "ok" / "a" / "0.png").read_bytes()
    (root / "closed.png").write_bytes(image)
    (root / "png.pth").write_bytes(image)
    (root / "loop" / "a").mkdir(parents=True)
    (root / "loop" / "a" / "again").symlink_to(root / "loop")
    contents = {"zero": b"", "truncated": image[:200], "text": b"no image"}
    for name, content in {**contents, "bomb": _png(width=30_000, height=30_000)}.items():
        fill(root / name, "a", "b", count=10)
        for number in range(10):
            (root / name / "a" / f"{number}.png").write_bytes(content)


def _cells(count: int, content: bytes | None = None) -> list[dict[str, object]]:
    cells = []
    for number in range(count):
        buffer = io.BytesIO()
        class_image(number % 2, number).save(buffer, "PNG")
        cells.append({"bytes": buffer.getvalue() if content is None else content, "path": None})
    return cells


def _make_parquet(root: Path) -> None:
    labels = [number % 2 for number in range(20)]
    cells = _cells(20)

    def write(name: str, columns: Mapping[str, Any], metadata: object = None) -> Path:
        table = pa.table(dict(columns))
        if metadata is not None:
            table = table.replace_schema_metadata({"huggingface": json.dumps(metadata)})
        path = root / name / "train-0.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(table, path)
        return path

    def names(*classes: object) -> object:
        return {"info": {"features": {"label": {"names": classes, "_type": "ClassLabel"}}}}

    good = {"img": cells, "label": labels}
    whole = write("pq_ok", good, names("a", "b")).read_bytes()
    write("pq_schema", {"foo": labels, "bar": labels})
    write("pq_null", {"img": cells, "label": [*labels[:-1], None]})
    write("pq_strlabel", {"img": cells, "label": ["x", "y"] * 10}, names("a", "b"))
    write("pq_out", {"img": cells, "label": [*labels[:-1], 7]}, names("a", "b"))
    write("pq_intimg", {"img": labels, "label": labels}, names("a", "b"))
    write("pq_dup", good, names("a", "a"))
    write("pq_dup_space", good, names("\u00e9", "e\u0301"))
    write("pq_float", {"img": cells, "label": [0.5, float("nan")] * 10})
    write("pq_zero", {"img": pa.array([], pa.binary()), "label": pa.array([], pa.int64())})
    write("pq_halfimg", {"img": [*cells[:10], *[None] * 10], "label": labels})
    write("pq_badimg", {"img": _cells(20, b"no image"), "label": labels})
    write("pq_label", good, names("a", "label"))
    write("pq_listlabel", {"img": cells, "label": [[0]] * 20})
    for name, content in {"pq_trunc": whole[:-200], "pq_empty": b""}.items():
        (root / name).mkdir()
        (root / name / "train-0.parquet").write_bytes(content)
    (root / "pq_folder.parquet").mkdir()


def _make_weights(root: Path) -> None:
    """Small stand-ins: what is wrong with them is seen before the network is filled."""
    from torchvision.models import mobilenet_v3_small

    state = mobilenet_v3_small(weights=None).state_dict()
    first = next(iter(state))
    torch.save({"state_dict": _Evil()}, root / "evil.pth")
    (root / "evil_protocol4.pth").write_bytes(pickle.dumps(_Evil(), protocol=4))
    torch.save(torch.nn.Linear(2, 2), root / "full.pth")
    torch.save([torch.zeros(2)], root / "list.pth")
    save_file({first: state[first]}, root / "truncated.safetensors")
    content = (root / "truncated.safetensors").read_bytes()
    (root / "truncated.safetensors").write_bytes(content[:-100])
    save_file({"other.weight": torch.zeros(3)}, root / "other.safetensors")
    save_file({**state, first: state[first] * float("nan")}, root / "nan.safetensors")
    torch.save({first: state[first].to_sparse()}, root / "sparse.pth")
    torch.save({first: state[first].to("meta")}, root / "meta.pth")
    torch.save({**state, first: state[first].double() * 1e300}, root / "f64.pth")
    torch.save(dict(enumerate(state.values())), root / "intkey.pth")
    torch.save({**state, first: state[first].to(torch.complex64) * 1j}, root / "complex.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantized = torch.quantize_per_tensor(state[first], 0.1, 0, torch.qint8)
    torch.save({first: quantized}, root / "quantized.pth")
    assert np.isfinite(state[first].numpy()).all()
