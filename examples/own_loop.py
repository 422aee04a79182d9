"""A training loop written by hand; the three marked lines save beside it and let it go on exactly where it was.

$ python examples/own_loop.py --epochs 8
$ python examples/own_loop.py --epochs 16 --resume
"""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from eventrunner import Checkpointer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--epochs", type=int, default=8)
parser.add_argument("--folder", default="runs/own_loop")
parser.add_argument("--resume", action="store_true")
args = parser.parse_args()

torch.manual_seed(0)
x, y = load_digits(return_X_y=True)
digits = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
train, test = random_split(digits, [1437, 360])
model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.2), nn.Linear(256, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
loader = DataLoader(train, 64, shuffle=True)

with Checkpointer(args.folder, model=model, optimizer=optimizer, resume=args.resume, keep=2) as ckpt:  # 1
    for epoch in range(ckpt.epoch, args.epochs):
        for images, labels in ckpt.batches(loader):  # 2
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            ckpt.save(every=10)  # 3
        print(f"epoch {epoch + 1}, step {ckpt.step}: loss {loss.item():.6f}")

model.eval()
images, labels = next(iter(DataLoader(test, len(test))))
right = (model(images).argmax(1) == labels).float().mean().item()
blocked = max((save.blocked for save in ckpt.saves), default=0.0)
print(f"accuracy {right:.4f}; {len(ckpt.saves)} saves held the loop up {blocked * 1000:.2f} ms at most")
