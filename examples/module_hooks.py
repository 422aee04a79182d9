"""PyTorch's module hooks on the bus: one receiver watches the layers whose names match a pattern.

$ python examples/module_hooks.py
"""

from typing import Any

import torch
from torch import nn

from eventrunner import Bus, watch_modules

torch.manual_seed(0)
bus = Bus()
model = nn.Sequential()
model.add_module("conv1", nn.Conv2d(1, 4, 3))
model.add_module("relu", nn.ReLU())
model.add_module("conv2", nn.Conv2d(4, 8, 3))
model.add_module("head", nn.Sequential(nn.Flatten(), nn.Linear(128, 10)))


@bus.on("after_forward")
def shapes(name: str, inputs: tuple[torch.Tensor, ...], outputs: torch.Tensor) -> None:
    print(f"{name}: {list(inputs[0].shape)} -> {list(outputs.shape)}")


@bus.on("after_backward", priority="LOW")
def gradient(name: str, grad_outputs: tuple[torch.Tensor, ...]) -> None:
    print(f"{name}: gradient of norm {grad_outputs[0].norm():.3f}")


@bus.on("after_forward", when=lambda outputs: bool((outputs > 1.5).any()))
def loud(name: str, outputs: Any) -> None:
    print(f"{name}: an activation of {outputs.max():.2f}")


with watch_modules(model, "conv*", bus=bus, backward=True) as watch:
    print("watching", ", ".join(watch.names))
    model(torch.randn(2, 1, 8, 8, requires_grad=True)).sum().backward()

model(torch.randn(2, 1, 8, 8))  # nobody watches any more, and nothing is left on the model
print("hooks left:", sum(len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()))
