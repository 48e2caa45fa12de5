"""Which images belong together: a patient's, a camera's, a burst's.

In: the paths of images below their folder, and a regular expression with one group, or a column of
names. Out: each image's group. An image that has none is a group of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from pipeline.data.base import Source
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of, one_line


def groups_of(group: str, paths: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The group of each path by split; empty where the expression finds none in the path.

    Raises:
        DataError: no regular expression with at most one group, or one that matches no path.
    """
    try:
        pattern = re.compile(group)
    except re.error as err:
        raise DataError(
            f"group={group}: no regular expression ({first_line(err)}), and no column of a CSV "
            r"file: write one such as patient_(\d+)"
        ) from None
    if pattern.groups > 1:
        raise DataError(
            f"group={group}: holds {pattern.groups} groups in brackets: leave one, or write (?:…)"
        )
    found: dict[str, list[str]] = {}
    matched = False
    for split, names in paths.items():
        matches = [pattern.search(name) for name in names]
        matched |= any(matches)
        found[split] = [match[pattern.groups] or "" if match else "" for match in matches]
    if not matched:
        every = [name for names in paths.values() for name in names]
        raise DataError(
            f"group={group}: matches none of {len(every)} paths, such as {one_line(every[0])}: "
            "write a regular expression with the group in brackets, or the name of a column"
        )
    return found


def with_groups(
    source: Source,
    group: str,
    groups: Mapping[str, Sequence[str]],
    names: Mapping[str, Sequence[str]],
) -> Source:
    """The source whose images belong to these groups, by split; notes tell what was found.

    `names`: of the images, which name the groups of those that have no other.
    """
    without = sum(not each for named in groups.values() for each in named)
    groups = {
        split: [each or name for each, name in zip(groups[split], names[split], strict=True)]
        for split in groups
    }
    parts = {"train": source.pool, "val": source.val, "test": source.test}
    known = {
        split: replace(part, groups=tuple(groups[split])) for split, part in parts.items() if part
    }
    parted = {split: set(part.groups) for split, part in known.items()}
    count = len(set().union(*parted.values()))
    notes = [f"group={group}: images of each of {count} groups are kept in one part"]
    if without:
        notes.append(
            f"images without a group by group={group}, each of which is a group of its own: "
            f"{without}"
        )
    for one, other in combinations(parted, 2):
        if both := sorted(parted[one] & parted[other]):
            notes.append(
                f"{len(both)} groups stand in {one} and in {other} of the data's own splits "
                f"({first_of(both, 3)}): move the images of each into one"
            )
    return replace(
        source,
        pool=known["train"],
        val=known.get("val"),
        test=known.get("test"),
        notes=(*source.notes, *notes),
    )
