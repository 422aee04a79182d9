"""A small CNN on scikit-learn's 1,797 handwritten digits: real images, and nothing to download.

$ python examples/train_digits.py
$ python examples/train_digits.py --work-dir runs/mine --epochs 20
$ python examples/train_digits.py --work-dir runs/mine --epochs 30 --resume
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics import Accuracy

from eventrunner import Runner, on

Batch = tuple[torch.Tensor, torch.Tensor]


def train_step(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
    images, labels = batch
    return {"loss": nn.functional.cross_entropy(model(images), labels)}


def val_step(model: nn.Module, batch: Batch) -> Batch:
    return model(batch[0]), batch[1]


@on("before_train_iter", priority="HIGH", mutates=())  # it writes to no weights, so a save goes on beside it
def shift(runner: Runner, data_batch: Batch) -> None:
    """Shift the images by up to one pixel, in place: more data for nothing."""
    rows, columns = torch.randint(-1, 2, (2,)).tolist()
    data_batch[0].copy_(data_batch[0].roll((rows, columns), (2, 3)))


@on("before_optimizer_step", every=100)
def watch_gradient(runner: Runner) -> None:
    norms = [p.grad.norm() for p in runner.model.parameters() if p.grad is not None]
    runner.logger.debug("gradient", norm=float(torch.stack(norms).norm()), step=runner.iter + 1)


@on("after_val_epoch", priority="VERY_LOW", start=10)
def good_enough(runner: Runner, metrics: dict[str, float]) -> None:
    if metrics["accuracy"] >= 0.995:
        runner.stop("good enough")


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=25)
parser.add_argument("--work-dir")
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(x / 16, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(y))
train, val, test = random_split(digits, [1257, 180, 360])
layers = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU()]
model = nn.Sequential(*layers, nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(1024, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

runner = Runner(
    model=model,
    work_dir=args.work_dir,
    resume=args.resume,
    train_step=train_step,
    val_step=val_step,
    optimizer=optimizer,
    param_scheduler=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
    train_dataloader=DataLoader(train, 64, shuffle=True),
    val_dataloader=DataLoader(val, 180),
    test_dataloader=DataLoader(test, 360),
    val_evaluator={"accuracy": Accuracy(task="multiclass", num_classes=10)},
    train_cfg=dict(max_epochs=args.epochs),
    default_hooks=dict(checkpoint=dict(max_keep_ckpts=2, save_best="accuracy")),
    randomness=dict(seed=0),
)
runner.train()
runner.test()
