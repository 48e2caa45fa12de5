"""Words for a split in the names of files and folders: one rule for both.

In: names. Out: which splits a name speaks of, and names that differ in a split's word alone.
`TrainImages`, `trainset`, `train-00000-of-00001` and `train2017` speak of training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
"""Words for a split; Hugging Face reads the same ones so."""
_WORD = re.compile(rf"({'|'.join(SPLIT_NAMES)})(?:set|data|images|imgs)?")
_ANYWHERE = re.compile("|".join(sorted(SPLIT_NAMES, key=len, reverse=True)))


def words_of(name: str) -> set[str]:
    """`trainSet_2` has the words train and set, `JPEGImages` has jpeg and images."""
    parted = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return set(re.findall("[a-z]+", parted.lower()))


def splits_in(name: str) -> set[str]:
    """The splits that the words of a name speak of."""
    found = map(_WORD.fullmatch, words_of(name))
    return {SPLIT_NAMES[match[1]] for match in found if match}


def twins_by_split(names: Iterable[str]) -> tuple[str, str] | None:
    """Two names such as `mnisttrain` and `mnisttest`, which differ in a split's word alone."""
    seen: dict[str, tuple[str, str]] = {}
    for name in names:
        plain = re.sub(r"\d+", "", name.lower())
        for match in _ANYWHERE.finditer(plain):
            rest = f"{plain[: match.start()]}*{plain[match.end() :]}"
            other, split = seen.setdefault(rest, (name, SPLIT_NAMES[match[0]]))
            if split != SPLIT_NAMES[match[0]]:
                return other, name
    return None
