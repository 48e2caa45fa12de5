"""What signals say, in words, where a table counts the runs in which they hold."""

from __future__ import annotations

_CLAIMS = {
    "positive.val_acc_gain": "more validation images are recognised than at the stage before",
    "positive.val_loss_stable": "validation loss does not exceed that of the stage before",
    "positive.no_early_spike": "training accuracy does not saturate early",
    "negative.train_acc_saturates": "training accuracy saturates within the first epochs",
    "negative.val_loss_rises": "validation loss rises",
    "negative.unstable_across_runs": "accuracy varies more over runs than at the stage before",
}


def claim_of(name: str) -> str:
    """What a signal says where it is true, in words; a name of another version as it is."""
    return _CLAIMS.get(name, name)
