"""Baseline: the same three stages in fastai's usual idiom.

In and out as in `plain_loop.py`. fastai's defaults are kept: `vision_learner` with its pooled
two-layer head, `aug_transforms` on the batch, `fit_one_cycle` (one call a stage), its Adam, the
last incomplete training batch dropped, BatchNorm of frozen groups trained. Epochs, batch size,
rates and weight decay are the common ones; always float32 and never compiled; `--head linear` puts
one linear layer for the head.
"""

import argparse
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path

import torch
from fastai.vision.all import (
    AdaptiveAvgPool,
    CategoryBlock,
    DataBlock,
    DataLoaders,
    Flatten,
    ImageBlock,
    IndexSplitter,
    ItemGetter,
    L,
    Learner,
    Normalize,
    Resize,
    SaveModelCallback,
    accuracy,
    aug_transforms,
    imagenet_stats,
    params,
    set_seed,
    vision_learner,
)
from torch import nn

# isort: split
from plain_loop import (
    CLASSES,
    WEIGHT_DECAY,
    Labelled,
    load_network,
    option_parser,
    read_images,
    stage_rates,
)


def split_groups(model: nn.Sequential) -> L:
    """Split the model (body, head) into parameter groups: the beginning, two blocks, the head."""
    body = model[0]  # conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4; or features
    if len(body) == 1:
        features = body[0]
        return L(features[:7], features[7:14], features[14:], model[1:]).map(params)
    return L(body[:6], body[6], body[7], model[1:]).map(params)


def make_loaders(args: argparse.Namespace, train: Labelled, val: Labelled) -> DataLoaders:
    """Return fastai's loaders of training and validation images."""
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=list(range(CLASSES)))),
        get_x=ItemGetter(0),
        get_y=ItemGetter(1),
        splitter=IndexSplitter(range(len(train), len(train) + len(val))),
        item_tfms=Resize(args.size),
        batch_tfms=[*aug_transforms(size=args.size), Normalize.from_stats(*imagenet_stats)],
    )
    cpu = torch.device("cpu")
    return block.dataloaders(train + val, bs=args.batch_size, num_workers=0, device=cpu)


def make_learner(args: argparse.Namespace, dls: DataLoaders, folder: Path) -> Learner:
    """Return a learner on the given weights, its checkpoints going to `folder`."""

    def arch(pretrained: bool) -> nn.Module:
        assert pretrained
        return load_network(args.backbone, args.weights)

    head = None
    if args.head == "linear":
        width = {"resnet18": 512, "mobilenet_v2": 1280}[args.backbone]
        head = nn.Sequential(AdaptiveAvgPool(1), Flatten(), nn.Linear(width, CLASSES))
    learn = vision_learner(
        dls,
        arch,
        cut=-2 if args.backbone == "resnet18" else -1,
        splitter=split_groups,
        custom_head=head,
        metrics=accuracy,
        path=folder,
    )
    if args.channels_last:
        learn.to_channelslast(use_amp=False)
    learn.recorder.train_metrics = True
    return learn


def train_stage(learn: Learner, stage: int, lr: float, epochs: int) -> dict[str, float]:
    """Train one stage in place, end on the weights of its best epoch; return its numbers."""
    start = time.perf_counter()
    learn.create_opt()
    learn.freeze_to(-stage)
    keep_best = SaveModelCallback(monitor="valid_accuracy", fname=f"stage{stage}")
    with contextlib.redirect_stdout(sys.stderr), learn.no_bar():
        learn.fit_one_cycle(epochs, lr, wd=WEIGHT_DECAY, cbs=keep_best)
    wall_s = time.perf_counter() - start
    names = list(learn.recorder.metric_names)[1:]  # without "epoch"
    history = [dict(zip(names, values, strict=False)) for values in learn.recorder.values]
    best = max(range(epochs), key=lambda epoch: history[epoch]["valid_accuracy"])
    return {
        "stage": stage,
        "wall_s": wall_s,
        "best_epoch": best + 1,
        "train_loss": history[best]["train_loss"],
        "train_acc": history[best]["train_accuracy"],
        "val_loss": history[best]["valid_loss"],
        "val_acc": history[best]["valid_accuracy"],
    }


def main() -> None:
    """Run the three stages and print the result."""
    parser = option_parser(__doc__)
    parser.add_argument("--head", choices=("fastai", "linear"), default="fastai")
    args = parser.parse_args()
    rates = stage_rates(args.lr)
    if args.threads:
        torch.set_num_threads(args.threads)
    train, val, test = read_images(args)
    set_seed(args.seed)
    dls = make_loaders(args, train, val)
    with tempfile.TemporaryDirectory() as folder:
        learn = make_learner(args, dls, Path(folder))
        start = time.perf_counter()
        stages = [
            train_stage(learn, stage, lr, args.epochs) for stage, lr in enumerate(rates, start=1)
        ]
        total_wall_s = time.perf_counter() - start
    test_acc, start = None, time.perf_counter()
    if test:
        with learn.no_bar():
            test_acc = learn.validate(dl=dls.test_dl(test, with_labels=True))[-1]
    result = {"tool": "fastai", "stages": stages, "total_wall_s": total_wall_s}
    result |= {"test_acc": test_acc, "test_s": time.perf_counter() - start}
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
