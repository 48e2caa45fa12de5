"""The model card: what a model is, what it was made of, and what it is known to be worth.

In: a finished refit, and the decision that it rests on. Out: Markdown; on the run as
`model_card.md`, and as description of the run and of the registered version, which is cut where
MLflow takes no more. Intervals are Wilson's (1927, JASA 22, 209-212), 95%, over test images that
are taken to be independent.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest

from pipeline.data.base import preparation_of
from pipeline.errors import LineageError
from pipeline.refit.recommended import Recommended
from pipeline.refit.train import Refit
from pipeline.reporting.page import to_markdown
from pipeline.runs.findings.predictions import TEST_PREDICTIONS
from pipeline.runs.messages.words import stage_in_words, stage_name
from pipeline.system.text import count_of
from pipeline.tracking import Tracking, keys
from pipeline.weights.licences import licence_of

CARD = "model_card.md"
LONGEST = 5000
"""Letters that MLflow's databases take for a description."""
SHOWN_CONFUSIONS = 5


@dataclass(frozen=True, kw_only=True)
class Share:
    """How many of some images were recognised."""

    right: int
    images: int

    @property
    def words(self) -> str:
        """`83.1% (80.0 to 86.0)`."""
        if not self.images:
            return "not measured"
        found = binomtest(self.right, self.images).proportion_ci(0.95, method="wilson")
        return f"{self.right / self.images:.1%} ({100 * found.low:.1f} to {100 * found.high:.1f})"


def test_predictions(tracking: Tracking, refitted: Refit) -> pd.DataFrame:
    """Columns label and predicted of the test images; empty where none was scored."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = tracking.fetch(refitted.run, TEST_PREDICTIONS, Path(folder))
            return pd.read_parquet(path, columns=["label", "predicted"])
        except LineageError:
            return pd.DataFrame({"label": [], "predicted": []}, dtype=str)


def overall(table: pd.DataFrame) -> Share:
    """The accuracy on the test images."""
    return Share(right=int((table["label"] == table["predicted"]).sum()), images=len(table))


def model_card(
    tracking: Tracking, refitted: Refit, recommended: Recommended, command: str
) -> tuple[str, str]:
    """The card, and the same short enough for a description."""
    table, run = test_predictions(tracking, refitted), refitted.run
    settings, draw = refitted.recipe.settings, refitted.session.draw
    wrong = table[table["label"] != table["predicted"]]
    pairs = Counter(zip(wrong["label"], wrong["predicted"], strict=True))
    by_class = {str(name): overall(part) for name, part in table.groupby("label")}
    facts = {
        "name": run.name,
        "decision": recommended,
        "recipe": refitted.recipe,
        "settings": settings,
        "weights": Path(settings.weights).name,
        "stages": [
            (stage_name(settings, n), stage_in_words(settings, n))
            for n in range(1, refitted.recipe.last + 1)
        ],
        "draw": draw,
        "images": len(draw.train),
        "accuracy": overall(table),
        "seen": int(run.metrics.get(keys.SEEN_IN_TRAINING, 0)),
        "test_sha256": run.tags[keys.TEST_SHA256],
        "confusions": pairs.most_common(SHOWN_CONFUSIONS),
        "preparation": preparation_of(settings),
        "licence": licence_of(settings.weights, settings.backbone),
        "made_with": run.tags[keys.MADE_WITH],
        "command": command,
    }
    rows = [
        (name, size, by_class.get(name, Share(right=0, images=0)))
        for name, size in zip(draw.class_names, refitted.train_sizes, strict=True)
    ]
    card = to_markdown("model_card", **facts, classes=rows)
    known = f"{overall(table).words} of {count_of(len(table), 'test image')} recognised"
    first = f"**{refitted.recipe.words[:1].upper()}{refitted.recipe.words[1:]}, trained on "
    first += f"{count_of(len(draw.train), 'image')}: {known if len(table) else 'no test split'}.**"
    if len(first) + len(card) + 2 > LONGEST:
        return card, f"{first}\n\n{to_markdown('model_card', **facts, classes=())}"[:LONGEST]
    return card, f"{first}\n\n{card}"
