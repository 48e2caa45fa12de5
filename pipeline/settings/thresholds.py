"""Where a signal, the gate or a check of images changes its mind."""

from __future__ import annotations

from pipeline.settings.fields import OffOrShare, StrictModel, setting


class Thresholds(StrictModel):
    """Where a signal or the gate changes its mind. No threshold changes the weights of a run."""

    signal_saturation_acc: float = setting(
        0.99, "training accuracy that counts as saturated", gt=0, le=1
    )
    signal_early_share: float = setting(
        0.25,
        "train_acc_saturates is true if accuracy saturates within this share of the epochs",
        gt=0,
        le=1,
    )
    signal_spike_share: float = setting(
        0.5,
        "no_early_spike is true if accuracy saturates after this share of the epochs, or never",
        gt=0,
        le=1,
    )
    signal_confidence: float = setting(
        0.9, "val_acc_gain is true if there is a gain with this one-sided confidence", gt=0.5, lt=1
    )
    signal_loss_rise: float = setting(
        0.05, "val_loss_rises is true if the loss ends by this share above its minimum", ge=0
    )
    signal_spread_p: float = setting(
        0.1, "unstable_across_runs is true below this p of the paired variance test", gt=0, lt=1
    )
    gate_flat: float = setting(
        0.05, "a loss is flat if its last fifth spans at most this share", ge=0
    )
    gate_ceiling: float = setting(
        0.97, "validation accuracy beyond which there is no headroom", gt=0, le=1
    )
    gate_min_gain: float = setting(
        0.005, "a smaller gain from stage 1 to stage 2 is flat: there is no headroom", ge=0
    )
    gate_memorising_acc: float = setting(
        0.995, "training accuracy from which a stage may be memorising", gt=0, le=1
    )
    gate_memorising_gap: float = setting(
        0.2, "nats by which a memorising stage's validation loss exceeds its training loss", ge=0
    )
    enforce_gate: bool = setting(
        False, "refuse to start stage 3 of three_stage unless the gate says promising (on/off)"
    )
    near_duplicates: OffOrShare = setting(
        0.25,
        "images of different parts are nearly the same if 1 - cosine of their frozen features is "
        "below this share of what is usual; off: nothing is looked for",
    )
