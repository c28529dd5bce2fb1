"""AdaDEM in a training loop of one's own: adapt a network to unlabelled inputs as they come.

Run: python examples/own_loop.py
"""

import torch
from torch import nn

from dembench import AdaDEM

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
loss = AdaDEM(reduction="mean")  # instead of the entropy; the class count is found at the first batch

for step in range(10):
    logits = net(torch.randn(128, 20))
    value = loss(logits)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    entropy = torch.special.entr(logits.softmax(1)).sum(1).mean()  # AdaDEM's value is no entropy: log the true one
    print(f"step {step}: AdaDEM {value.item():+.4f}, entropy {entropy.item():.4f} nats")
