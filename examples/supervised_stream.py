"""AdaDEM beside plain supervised training: labelled batches as always, and a stream of inputs without labels.

Run: python examples/supervised_stream.py
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dembench import AdaDEM

torch.manual_seed(0)
centres = torch.randn(4, 16)
net = nn.Sequential(nn.Linear(16, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
adadem = AdaDEM(reduction="mean")  # finds the number of classes at its first batch


def labelled() -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        y = torch.randint(4, (16,))
        yield centres[y] + torch.randn(16, 16), y


def stream() -> Iterator[Tensor]:
    """Inputs from elsewhere, mostly of the first class; nobody has labelled them."""
    while True:
        y = (torch.randint(8, (64,)) - 4).clamp(min=0)
        yield centres[y] + 0.5 + torch.randn(64, 16)


for step, ((x, y), u) in enumerate(zip(labelled(), stream(), strict=True), 1):
    z = net(torch.cat([x, u]))
    supervised, unlabelled = F.cross_entropy(z[:16], y), adadem(z[16:])
    optimizer.zero_grad()
    (supervised + 0.3 * unlabelled).backward()
    optimizer.step()
    if step % 10 == 0:
        entropy = torch.special.entr(z[16:].softmax(1)).sum(1).mean()  # AdaDEM's value is no entropy
        print(f"step {step}: supervised {supervised.item():.4f}, entropy on the stream {entropy.item():.4f} nats")
    if step == 50:
        break
