"""Blocks: as many as a library has, as a person asks for, or as patterns say; else one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.errors import SettingsError
from pipeline.model.backbones import Backbone, build_backbone
from pipeline.model.grouping import Blocks, blocks_of
from tests.families import FAMILIES, backbone_of
from tests.helpers import CLASSES
from tests.networks import Net

VIT = "vit_b_16"
GOOD = "head: fc\nbody: [early, late]\nstem: stem\n"


def transformer(blocks: str) -> Backbone:
    size, make, _ = FAMILIES[VIT]
    return backbone_of(VIT, make(), size, blocks)


def with_file(path: Path, text: str) -> Blocks:
    path.write_text(text)
    return blocks_of(Net(CLASSES), "tests.networks:Net", str(path))


def layers(backbone: Backbone, block: str) -> set[int]:
    names = backbone.tensor_names([block])
    return {int(n.rpartition("encoder_layer_")[2].split(".")[0]) for n in names if "_layer_" in n}


def test_a_file_of_blocks_that_was_edited_since_the_process_began_is_refused(
    tmp_path: Path,
) -> None:
    """What was cut by the earlier blocks is kept for the whole process."""
    path = tmp_path / "blocks.yaml"
    before = with_file(path, GOOD)
    with pytest.raises(SettingsError, match=r"the file has changed since .*start .*again"):
        with_file(path, "head: fc\nlast: late\nmiddle: early\nstem: stem\n")
    assert with_file(path, GOOD) == before
    path = tmp_path / "mended.yaml"
    with pytest.raises(SettingsError, match="matches nothing"):
        with_file(path, GOOD.replace("late", "lat3"))
    assert with_file(path, GOOD) == before


def test_a_transformer_of_twelve_layers_has_four_blocks_and_twelve_where_asked_for() -> None:
    usual, all_twelve = transformer("auto"), transformer("12")
    assert [layers(usual, f"block{n}") for n in (1, 2, 3, 4)] == [
        {0, 1, 2},
        {3, 4, 5},
        {6, 7, 8},
        {9, 10, 11},
    ]
    assert [layers(all_twelve, f"block{n}") for n in range(1, 13)] == [{n} for n in range(12)]
    assert len(all_twelve.segments) == 14
    assert "encoder.ln.weight" in all_twelve.tensor_names(["block12"])
    assert all_twelve.frozen_segments(("head", "block12", "block11")) == 11


@pytest.mark.parametrize("count", ["0", "13"])
def test_more_blocks_than_there_are_groups_of_layers_are_refused(count: str) -> None:
    with pytest.raises(SettingsError, match=rf"blocks={count}: vit_b_16 has 12 .*pass 1 to 12"):
        transformer(count)


def test_a_number_is_refused_where_the_network_declares_its_blocks() -> None:
    with pytest.raises(
        SettingsError, match=r"blocks=2: .*declares its blocks itself \(head, late"
    ):
        blocks_of(Net(CLASSES), "tests.networks:Net", "2")


def test_patterns_in_a_file_come_before_what_the_network_declares(tmp_path: Path) -> None:
    blocks = with_file(tmp_path / "b.yaml", GOOD)
    assert blocks.order == ("stem", "body", "head")
    assert blocks.owners["early.0.weight"] == blocks.owners["late.1.running_mean"] == "body"
    nested = with_file(tmp_path / "n.yaml", "blocks:\n  head: fc\n  rest: .\n")
    assert nested.order == ("rest", "head")


def test_of_patterns_that_overlap_the_first_one_has_the_tensor(tmp_path: Path) -> None:
    text = "head: fc\nlate: late\nnorms: '.*\\.1\\.'\nrest: '.'\n"
    owners = with_file(tmp_path / "b.yaml", text).owners
    assert owners["late.1.weight"] == "late"
    assert owners["early.1.weight"] == "norms"
    assert owners["early.0.weight"] == "rest"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("head: fc\nlate: late\n", r"stem\.0\.weight, .* and \d+ more are in no block: add a"),
        (GOOD + "more: conv\n", "more: conv matches nothing: no tensor's name begins so"),
        (GOOD + "more: late\n", r"more: late matches nothing: .* are in blocks above it"),
        ("stem: stem\nbody: [early, late]\nhead: fc\n", "head first"),
        ("body: [fc, early, late, stem]\n", "head first"),
        ("blocks: [fc, late]\n", "must map names to patterns"),
        ("head: fc\nrest: '['\n", r"rest: \[ is not a regular expression"),
        ("head: fc\nrest: early\nrest: .\n", "rest"),
        ("head: fc\nlate: []\nrest: .\n", "late has no patterns: add one"),
        ("head: fc\nrest: {a: .}\n", "rest: a pattern must be a text, got"),
        ("head: fc\n1: late\nrest: .\n", "'1' cannot name a block: use letters"),
        ("head: fc\nall: .\n", "'all' cannot name a block"),
        ("head: fc\na+b: .\n", r"'a\+b' cannot name a block"),
    ],
    ids=[
        *("leaves tensors over", "matches nothing", "taken before", "head last", "no head"),
        *("a list", "no pattern", "a key twice", "a block of nothing", "a mapping inside"),
        *("a position", "a word of schedules", "a sign of schedules"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_in_one_line(
    text: str, words: str, tmp_path: Path
) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        with_file(tmp_path / "b.yaml", text)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(f"blocks={tmp_path / 'b.yaml'}: ")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml"):
        blocks_of(Net(CLASSES), "tests.networks:Net", str(tmp_path / "missing.yaml"))


def test_a_network_of_timm_without_groups_asks_for_patterns(tmp_path: Path) -> None:
    class Ungrouped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc = nn.Linear(3, 3), nn.Linear(3, CLASSES)

    class Coarse(Ungrouped):
        """As timm's RDNet is."""

        def group_matcher(self, coarse: bool = False) -> dict[str, str]:
            assert not coarse, "coarse grouping is not implemented"
            return {"stem": "body"}

        def get_classifier(self) -> nn.Module:
            return self.fc

    name = "timm:poolformer_s12"
    with pytest.raises(SettingsError, match=r"declares no groups .* its modules are body, fc"):
        blocks_of(Coarse(), name, "auto")
    with pytest.raises(SettingsError, match=r"declares no groups .* its modules are body, fc"):
        blocks_of(Ungrouped(), name, "auto")
    path = tmp_path / "b.yaml"
    path.write_text("head: fc\nbody: body\n")
    assert blocks_of(Ungrouped(), name, str(path)).order == ("body", "head")


def test_bare_parameters_are_in_blocks_too() -> None:
    backbone = build_backbone("tests.networks:BareParameters", CLASSES, 32, seed=0)
    assert "scale" in backbone.tensor_names(["late"])
    assert torch.equal(backbone.model.get_parameter("scale"), torch.full((8, 1, 1), 0.5))
