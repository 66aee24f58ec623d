"""The three settings of the study."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .design import Budget, Preset

_FEW = tuple(f"bbc-{k}" for k in (8, 16, 32))
GLUE_TASKS = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")
AFTER_MNLI = ("rte", "stsb", "mrpc")
"""The paper starts these from a model that was fine-tuned on MNLI."""

# SGD with momentum 0.9 adds up ten gradients; without momentum its rates are ten times as large. The first steps of
# AMSGrad, which corrects no bias, are thirty times as long as its rate, lr / sqrt(1 - beta2), but three with momentum.
_RATES = {
    ("sgd", 0.9): (0.001, 0.002, 0.005, 0.01, 0.02, 0.05),
    ("sgd", 0.0): (0.01, 0.02, 0.05, 0.1, 0.2, 0.5),
    ("amsgrad", 0.9): (1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4),
    ("amsgrad", 0.0): (2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4),
}
_PAPER_RATES = {
    ("sgd", 0.9): (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
    ("sgd", 0.0): (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
    ("amsgrad", 0.9): (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
    ("amsgrad", 0.0): (0.25, 0.5, 1.0, 2.0, 4.0, 8.0),
}

PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        "smoke": Preset(
            tasks=GLUE_TASKS,
            model=None,
            rates=_RATES,
            length=16,
            budget=Budget(batch=4, updates=6, warmup=1),
            seeds=3,
            few=True,
        ),
        "small": Preset(
            tasks=_FEW,
            model=None,
            rates=_RATES,
            length=32,
            budget=Budget(batch=8, updates=40, warmup=4),
            tuning_seeds=2,
            tuned_on="bbc-16",
            speed_up=("bbc-32",),
        ),
        "paper": Preset(
            tasks=GLUE_TASKS,
            model="FacebookAI/roberta-large",
            start="FacebookAI/roberta-large-mnli",
            rates=_PAPER_RATES,
            relative=("amsgrad",),
            length=512,
            speed_up=("mrpc", "rte", "cola"),
        ),
    }
)
"""``paper`` is the published setting, with stand-ins where it is not known; ``small`` fine-tunes a small encoder on a
few labelled news texts; ``smoke`` shows that everything runs, on made-up rows."""
