"""What may be done to training images: `augment=`, words joined by `+`, at most one of each group.

In: text such as `light+erasing+mixup`. Out: the same words in one order, so that one augmentation
has one name in keys. `pipeline/data/augment.py` renders what is done to single images,
`pipeline/training/mixing.py` what is done to batches.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator
from pydantic_core import PydanticCustomError

BASES = ("none", "light", "strong")
POLICIES = ("randaugment", "trivialaugment")
ERASING = "erasing"
MIXINGS = ("mixup", "cutmix")
GROUPS = (BASES, POLICIES, (ERASING,), MIXINGS)
WORDS = tuple(word for group in GROUPS for word in group)


def in_order(text: str) -> str:
    """The words in the order of `GROUPS`; `none` is left out where another word stands.

    Raises:
        PydanticCustomError: an unknown word, or two of a group.
    """
    words = [word.strip() for word in text.split("+")]
    if not set(words) <= set(WORDS):
        near = [match for word in words for match in get_close_matches(word, WORDS, n=1)]
        raise PydanticCustomError(
            "augment",
            f"must be words joined by +, out of {', '.join(WORDS)}",
            {"meant": "+".join(near)} if len(near) == len(words) else {},
        )
    for group in GROUPS:
        if len([word for word in words if word in group]) > 1:
            raise PydanticCustomError("augment", f"must hold at most one of {', '.join(group)}")
    return "+".join(word for word in WORDS[1:] if word in words) or "none"


Augment = Annotated[str, AfterValidator(in_order)]
"""Words of `WORDS` joined by `+`, in their order."""


def of_images(augment: Augment) -> Augment:
    """What is done to single images: all words except the one that mixes batches."""
    return "+".join(word for word in augment.split("+") if word not in MIXINGS) or "none"


def mixing_of(augment: Augment) -> str | None:
    """What is done to a batch: `mixup`, `cutmix` or nothing."""
    return next((word for word in augment.split("+") if word in MIXINGS), None)
