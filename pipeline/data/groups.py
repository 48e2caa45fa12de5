"""Which images belong together: a patient's, a camera's, a burst's.

In: the paths of images below their folder, and a regular expression with one group. Out: the name
of each image's group.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

from pipeline.data.base import Source
from pipeline.errors import DataError, first_line
from pipeline.system.text import first_of, one_line


def groups_of(group: str, paths: Mapping[str, Sequence[str]]) -> tuple[dict[str, list[str]], int]:
    """The group of each path by split, and how many paths match nothing: each is a group itself.

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
    missed: list[str] = []
    for split, names in paths.items():
        matches = [pattern.search(name) for name in names]
        missed += [name for name, match in zip(names, matches, strict=True) if not match]
        found[split] = [
            match[pattern.groups] or "" if match else f"path {name}"
            for name, match in zip(names, matches, strict=True)
        ]
    if len(missed) == sum(map(len, paths.values())):
        raise DataError(
            f"group={group}: matches none of {len(missed)} paths, such as {one_line(missed[0])}: "
            "write a regular expression with the group in brackets, or the name of a column"
        )
    return found, len(missed)


def with_groups(source: Source, group: str, groups: Mapping[str, Sequence[str]]) -> Source:
    """The source whose images belong to these groups, by split; notes tell what was found."""
    parts = {"train": source.pool, "val": source.val, "test": source.test}
    known = {
        split: replace(part, groups=tuple(map(str, groups[split])))
        for split, part in parts.items()
        if part
    }
    names = {split: set(part.groups) for split, part in known.items()}
    count = len(set().union(*names.values()))
    notes = [f"group={group}: images of each of {count} groups are kept in one part"]
    for one, other in combinations(names, 2):
        if both := sorted(names[one] & names[other]):
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
