"""The table of blocks: its numbers by hand, for a network of one's own."""

from __future__ import annotations

import pytest

from pipeline.cli import main
from pipeline.model.backbones import build_backbone
from pipeline.model.block_table import block_table


def test_every_number_of_the_table_is_that_of_the_layers() -> None:
    table = block_table(build_backbone("tests.networks:Net", 5, 32, seed=0), 32)
    body = 8 * 8 * 9 + 16  # a 3x3 convolution of 8 channels, scale and shift of its norm
    stem, head = 3 * 8 * 9 + 16, 8 * 5 + 5
    total = 2 * body + stem + head
    convolution = 2 * 8 * 8 * 9 * 64  # on 8 x 8 positions
    assert table["position"].tolist() == ["head", "1", "2", "3"]
    assert table["block"].tolist() == ["head", "late", "early", "stem"]
    assert table["modules"].tolist() == ["fc", "late", "early", "stem"]
    assert table["parameters"].tolist() == [f"{n}" for n in (head, body, body, stem)]
    assert table["share"].tolist() == [f"{n / total:.1%}" for n in (head, body, body, stem)]
    assert table["output"].tolist() == ["5", "8", "8 x 8 x 8", "8 x 8 x 8"]
    operations = [2 * 8 * 5, convolution, convolution, 2 * 3 * 8 * 9 * 64]
    assert table["MFLOP"].tolist() == [f"{n / 1e6:,.1f}" for n in operations]


def test_blocks_that_share_a_segment_have_their_numbers_at_the_last_of_them() -> None:
    table = block_table(build_backbone("tests.networks:SkipOverABorder", 5, 32, seed=0), 32)
    assert table["output"].tolist() == ["5", "8", "(shared)", "8 x 8 x 8"]
    assert table["MFLOP"].tolist()[2] == "(shared)"
    assert table["MFLOP"][1] == f"{2 * 2 * 8 * 8 * 9 * 64 / 1e6:,.1f}"


def test_layers_that_are_numbered_one_after_another_are_shown_as_a_range() -> None:
    table = block_table(build_backbone("mobilenet_v3_small", 5, 32, seed=0), 32)
    assert dict(zip(table["block"], table["modules"], strict=True)) == {
        "head": "classifier",
        "block4": "features.9-12",
        "block3": "features.4-8",
        "block2": "features.2-3",
        "block1": "features.1",
        "stem": "features.0",
    }


def test_a_network_with_too_few_blocks_for_the_usual_schedule_has_a_table_all_the_same(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["blocks", "--backbone", "tests.networks:FirstNormAlone", "--image_size", "32"]
    assert main(words) == 0
    found = capsys.readouterr().out
    assert "1   stem" in found
    assert "note: schedule three_stage: stage 3 names block 2" in found
    assert main([*words, "--schedule", "two_stage"]) == 2
    assert "schedule two_stage: stage 2 names block 2" in capsys.readouterr().err


def test_a_block_that_is_declared_out_of_order_is_named(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["blocks", "--backbone", "tests.networks:OutOfOrder", "--image_size", "32"]) == 0
    [line] = [n for n in capsys.readouterr().out.splitlines() if n.startswith("note:")]
    assert "late computes on what early makes, which is declared to come after it" in line
