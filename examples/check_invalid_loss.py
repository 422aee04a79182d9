"""A hook of one's own, registered in three ways: by name in a dict, with a priority there, and as an object.

$ python examples/check_invalid_loss.py
"""

from typing import Any

import torch
from torch.utils.data import DataLoader, TensorDataset

from eventrunner import HOOKS, Hook, Run, Runner


@HOOKS.register_module()
class CheckInvalidLossHook(Hook):
    """Check every *interval* iterations that the loss is a finite number."""

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval

    def after_train_iter(
        self, runner: Run, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        if outputs is not None and self.every_n_train_iters(runner, self.interval):
            assert torch.isfinite(outputs["loss"]), runner.logger.info("loss become infinite or NaN!")


def train_with(hook: Hook | dict[str, Any], learning_rate: float) -> str:
    torch.manual_seed(0)
    x = torch.randn(256, 4)
    model = torch.nn.Linear(4, 1)
    runner = Runner(
        model=model,
        train_step=lambda model, batch: {"loss": (model(batch[0]) - batch[0].sum(1, keepdim=True)).pow(2).mean()},
        optimizer=torch.optim.SGD(model.parameters(), lr=learning_rate),
        train_dataloader=DataLoader(TensorDataset(x), 8),
        train_cfg=dict(max_epochs=4),
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[hook],
    )
    try:
        runner.train()
    except AssertionError:
        return f"stopped a run that diverged, at iteration {runner.iter + 1}"
    (checker,) = [found for found in runner.hooks if isinstance(found, CheckInvalidLossHook)]
    return f"trained {runner.iter} iterations, checked at priority {checker.priority}"


if __name__ == "__main__":
    print("by name:      ", train_with(dict(type="CheckInvalidLossHook", interval=50), learning_rate=0.05))
    print("with priority:", train_with(dict(type="CheckInvalidLossHook", interval=50, priority="ABOVE_NORMAL"), 0.05))
    print("as an object: ", train_with(CheckInvalidLossHook(interval=10), learning_rate=50.0))
