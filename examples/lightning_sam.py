"""SAM under a Lightning Trainer, on 8x8 digits: python examples/lightning_sam.py --max-steps 300 --rho 0.05"""

import argparse

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from steppe import SAM
from steppe.integrations.lightning import SharpnessAwareCallback


class Digits(pl.LightningModule):
    def __init__(self, rho: float, max_steps: int):
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2), nn.Linear(128, 10)
        )
        self.accuracy = MulticlassAccuracy(10, average="micro")
        self.rho, self.max_steps = rho, max_steps

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.cross_entropy(self.net(x), y)
        self.log("train loss", loss)  # once per step, at w
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.accuracy(self.net(x), y)
        self.log("validation accuracy", self.accuracy)

    def configure_optimizers(self):
        opt = SAM(torch.optim.AdamW(self.parameters(), lr=3e-3), rho=self.rho)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, self.max_steps)
        return {"optimizer": opt, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=300)
    parser.add_argument("--rho", type=float, default=0.05, help="0 is plain AdamW")
    args = parser.parse_args()
    pl.seed_everything(0, verbose=False)
    digits = load_digits()
    data = TensorDataset(torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target))
    train, validation = random_split(data, [1500, 297])
    trainer = pl.Trainer(
        max_steps=args.max_steps,
        callbacks=[SharpnessAwareCallback()],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    module = Digits(args.rho, args.max_steps)
    trainer.fit(module, DataLoader(train, batch_size=64, shuffle=True))
    trainer.validate(module, DataLoader(validation, batch_size=297))


if __name__ == "__main__":
    main()
