"""Few images out of many, with every class among them: what quick classifiers are fitted to.

In: the labels of images in an order that mixes classes, such as that of their digests. Out: places
in that order. The first images are taken as they come wherever these hold every class.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from pipeline.data.images import IntArray

TWO = 2
"""Images of a class that are enough: it can be trained on, and be tested."""


def few_with_every_class(labels: IntArray, most: int, least: int = 1) -> IntArray:
    """Places of at most `most` images, in rising order.

    A class of which the first `most` hold fewer than two, though there are more, is given its own
    first images, as many as each class would have in equal shares: a rare class has all it has.
    The last images of other classes give way; these keep two each, where there are so many places.
    Of more classes than places the first classes have one image each. Classes of fewer than
    `least` images are given none.
    """
    sizes = np.bincount(labels)
    enough = np.flatnonzero(sizes[labels] >= least)
    if len(enough) < len(labels):
        return enough[few_with_every_class(labels[enough], most)]
    among = np.bincount(labels[:most], minlength=len(sizes))
    short = among < np.minimum(sizes, TWO)
    if not short.any():
        return np.arange(min(most, len(labels)))
    share = max(1, most // int(np.count_nonzero(sizes)))
    kept = np.full_like(sizes, min(TWO, share))
    kept[short] = share
    earlier = pd.Series(labels).groupby(labels).cumcount().to_numpy()  # of the same class
    is_kept = earlier < kept[labels]
    places = np.concatenate([np.flatnonzero(is_kept), np.flatnonzero(~is_kept)])
    return np.sort(places[:most])
