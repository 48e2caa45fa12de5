"""Entry point blocks: what a stage would release. The table of a network's blocks; nothing is run.

In: what was typed. Out: the table, on the terminal.
"""

from __future__ import annotations

import pandas as pd

from pipeline.entries.command_line.plans import BlocksPlan
from pipeline.model.backbones import build_backbone
from pipeline.model.block_table import block_table
from pipeline.runs.command import Command
from pipeline.system.text import in_columns


def blocks_entry(command: Command, plan: BlocksPlan) -> pd.DataFrame:
    """Entry point blocks.

    Raises:
        SettingsError: the network cannot be made, or not be cut into these blocks.
    """
    settings, say = plan.settings, command.say
    backbone = build_backbone(
        settings.backbone, plan.classes, settings.image_size, settings.seed, settings.blocks
    )
    table = block_table(backbone, settings.image_size)
    say(f"{backbone.name}, {plan.classes} classes, images of {settings.image_size} px\n")
    say(in_columns(table))
    if plan.misfit:
        say(f"note: {plan.misfit}")
    for stage in settings.chain.stages:
        say(f"stage {stage.number} of {stage.schedule} trains {' + '.join(stage.trainable)}")
    for block, reason in backbone.merged.items():
        say(f"note: no cut after {block}: {reason}; a frozen prefix cannot end there")
    return table
