"""AdaDEM in a Lightning module: the loss is a submodule, so its table is in the checkpoint and on the device.

Run: python examples/lightning_module.py   (needs lightning: pip install "dembench[loggers]")
"""

import lightning as L
import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from dembench import AdaDEM


class Semi(L.LightningModule):
    def __init__(self, weight: float = 0.3) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5))
        self.entropy = AdaDEM(num_classes=5, reduction="mean")
        self.weight = weight

    def training_step(self, batch: dict[str, list[Tensor]]) -> Tensor:
        (x, y), (u,) = batch["labelled"], batch["unlabelled"]
        z, z_unlabelled = self.net(torch.cat([x, u])).split([len(x), len(u)])
        supervised = F.cross_entropy(z, y)
        entropy = self.entropy(z_unlabelled)
        self.log_dict({"supervised": supervised, "adadem": entropy}, prog_bar=True)
        return supervised + self.weight * entropy

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main() -> Semi:
    L.seed_everything(0, verbose=False)
    centres = 2 * torch.randn(5, 20)
    y = torch.arange(5).repeat(4)
    labelled = TensorDataset(centres[y] + torch.randn(20, 20), y)
    unlabelled = TensorDataset(centres[torch.randint(5, (640,))] + torch.randn(640, 20))
    loaders = {
        "labelled": DataLoader(labelled, 20, shuffle=True),
        "unlabelled": DataLoader(unlabelled, 64, shuffle=True),
    }
    model = Semi()
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, CombinedLoader(loaders, "max_size_cycle"))
    print({name: round(value.item(), 4) for name, value in trainer.callback_metrics.items()})
    return model


if __name__ == "__main__":
    main()
