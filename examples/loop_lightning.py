"""Lightning in a loop of your own: steppe compare --task examples/loop_lightning.py:train"""

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from steppe import SharpnessAware
from steppe.integrations.lightning import SharpnessAwareCallback
from steppe.lab import loop

X, Y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
TRAIN, VALIDATION, TEST = (TensorDataset(X[i].float() / 16, Y[i]) for i in torch.arange(len(X)).split([1000, 397, 400]))


class Digits(pl.LightningModule):
    def __init__(self, run):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
        self.run, self.opt = run, run.optimizer(self.net, updates=run.epochs * 16)

    def configure_optimizers(self):
        return self.opt

    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        with self.run.paused():
            loss, right = self.training_step(batch, batch_idx), self.net(batch[0]).argmax(1) == batch[1]
            self.log_dict({"accuracy": 100 * right.float().mean(), "validation_loss": loss})

    def on_train_epoch_end(self):
        self.run.report(self.current_epoch, **self.trainer.callback_metrics)


@loop(metric_name="accuracy", higher_is_better=True, epochs=10)
def train(run):
    module, order = Digits(run), torch.Generator().manual_seed(run.seed)
    sharp = [SharpnessAwareCallback(fraction=run.fraction)] if isinstance(module.opt, SharpnessAware) else []
    silent = dict.fromkeys(["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    trainer = pl.Trainer(accelerator=run.device.type, devices=1, max_epochs=run.epochs, callbacks=sharp, **silent)
    trainer.fit(module, DataLoader(TRAIN, 64, shuffle=True, generator=order), DataLoader(VALIDATION, 400))
    return {"accuracy": trainer.validate(module, DataLoader(TEST, 400), verbose=False)[0]["accuracy"]}
