"""Captions below small pictures: whole names in lines, and an end for what is far too long."""

import pytest
import torch

from pipeline.reporting.image_grids import Row, caption, image_grid


@pytest.mark.parametrize(
    "name", ["cat", "golden retriever puppy", "a-name_without-any-space.of.40letters"]
)
def test_a_caption_holds_the_whole_name(name: str) -> None:
    below = caption(f"{name}\nwas {name}")
    assert "".join(below.split()) == "".join(f"{name}was{name}".split())
    assert max(map(len, below.split("\n"))) <= 22


def test_a_name_of_250_letters_ends_with_an_ellipsis() -> None:
    below = caption("x" * 250)
    assert below.endswith("…")
    assert below.count("\n") == 3


def test_rows_leave_room_for_the_longest_caption() -> None:
    pixels = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    low, high = (
        image_grid("", [Row("", pixels, ["cat", name])]).get_size_inches()[1]
        for name in ("cat", "a name that takes three lines below its picture")
    )
    assert high > low
