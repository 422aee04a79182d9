"""A byte-level GPT of 2.7 million parameters on the source text of Python's standard library.

$ python examples/train_bytes.py --iters 300
$ python examples/train_bytes.py --iters 300 --no-overlap
"""

import argparse
import sysconfig
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from eventrunner import OptimWrapper, Runner


class GPT(nn.Module):
    def __init__(self, width: int = 192, depth: int = 6, heads: int = 6, context: int = 128) -> None:
        super().__init__()
        self.byte, self.place = nn.Embedding(256, width), nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, nn.LayerNorm(width), enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        hidden = self.byte(text) + self.place.weight[: text.shape[1]]
        logits: torch.Tensor = self.blocks(hidden, mask=self.mask, is_causal=True) @ self.byte.weight.T / 14
        return logits

    def loss(self, batch: list[torch.Tensor]) -> torch.Tensor:
        text = batch[0].long()
        return nn.functional.cross_entropy(self(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def read_source(limit: int) -> torch.Tensor:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(path.read_bytes() for path in files)[:limit]
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).unfold(0, 129, 128)


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
for name, default in (("iters", 1000), ("bytes", 4_000_000), ("batch", 16)):
    parser.add_argument(f"--{name}", type=int, default=default)
parser.add_argument("--work-dir")
parser.add_argument("--resume", action="store_true")
parser.add_argument("--overlap", action=argparse.BooleanOptionalAction, default=True)
args = parser.parse_args()

torch.manual_seed(0)
chunks = read_source(args.bytes)
model = GPT()
adamw = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
warm_up = max(args.iters // 10, 1)
schedule = SequentialLR(adamw, [LinearLR(adamw, 0.01, 1.0, warm_up), CosineAnnealingLR(adamw, args.iters)], [warm_up])
saves = dict(save_best="loss", max_keep_ckpts=2, interval=max(args.iters // 8, 1), offload=args.overlap)
runner = Runner(
    model=model,
    work_dir=args.work_dir,
    resume=args.resume,
    train_step=lambda model, batch: {"loss": model.loss(batch)},
    val_step=lambda model, batch: model.loss(batch),
    optim_wrapper=OptimWrapper(adamw, clip_grad=dict(max_norm=1.0)),
    param_scheduler=schedule,
    train_dataloader=DataLoader(TensorDataset(chunks[:-64]), args.batch, shuffle=True, drop_last=True),
    val_dataloader=DataLoader(TensorDataset(chunks[-64:]), 32),
    val_evaluator={"loss": MeanMetric()},
    train_cfg=dict(max_iters=args.iters, val_interval=max(args.iters // 4, 1)),
    default_hooks=dict(logger=dict(interval=max(args.iters // 20, 1)), checkpoint=saves),
    custom_hooks=[dict(type="EMAHook", momentum=0.05)],
    randomness=dict(seed=0),
)
runner.train()
print(f"{'with' if args.overlap else 'without'} overlap: {runner.account().saves}")
