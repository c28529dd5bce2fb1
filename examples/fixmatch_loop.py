"""AdaDEM in a FixMatch loop of one's own: one line beside the two terms that FixMatch has.

Run: python examples/fixmatch_loop.py
"""

import torch
from torch import nn
from torch.nn import functional as F

from dembench import AdaDEM

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
adadem = AdaDEM(num_classes=5, reduction="mean")

centres = 2 * torch.randn(5, 20)
labels = torch.arange(5).repeat(4)
labelled, pool = centres[labels] + torch.randn(20, 20), centres[torch.randint(5, (1000,))] + torch.randn(1000, 20)

for step in range(60):
    unlabelled = pool[torch.randint(len(pool), (64,))]
    weak = unlabelled + 0.1 * torch.randn_like(unlabelled)  # in place of flips and crops
    strong = unlabelled + 1.0 * torch.randn_like(unlabelled)  # in place of RandAugment and cutout
    z_labelled, z_weak, z_strong = net(torch.cat([labelled, weak, strong])).split([20, 64, 64])

    confidence, pseudo = z_weak.detach().softmax(1).max(1)
    mask = (confidence >= 0.95).float()
    supervised = F.cross_entropy(z_labelled, labels)
    consistency = (F.cross_entropy(z_strong, pseudo, reduction="none") * mask).mean()
    loss = supervised + consistency + 0.1 * adadem(z_weak)  # the weak logits need their gradient now

    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 10 == 9:
        print(f"step {step + 1}: supervised {supervised.item():.4f}, confident {mask.mean().item():.0%}")
