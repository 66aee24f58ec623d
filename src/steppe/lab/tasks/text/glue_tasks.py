"""The eight tasks of GLUE as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class Recipe:
    """Published settings of a fine-tuning: learning rate, batch size, updates in all, and of these with warm-up."""

    lr: float
    batch_size: int
    updates: int
    warmup: int


@dataclass(frozen=True)
class GlueTask:
    """What a task of GLUE consists of.

    The settings stand in for a table of the AdaSAM paper (Sun et al., 2024) that is not at hand; they are not the
    paper's. Those of fairseq are the ones it publishes for fine-tuning RoBERTa (examples/roberta/README.glue.md); with
    weight decay 0.1. Those of FSAM are in that method's scripts for RoBERTa-large (WHU-ZQH/FSAM4PLM, scripts); with
    weight decay 0.01, dropout 0.1, betas 0.9 and 0.98, eps 1e-6, polynomial decay and no clipping.

    Attributes:
        title: Its name as GLUE writes it.
        texts: The columns of texts on the hub.
        classes: The names of the classes in the order of their numbers; none means that numbers are to be predicted.
        metric: The key of `metrics.METRICS` on which it is judged.
        fairseq: The settings of fairseq.
        fsam: The settings of FSAM, where there are any.
        tsv_texts: The columns of texts in GLUE's own tab-separated files.
        tsv_label: The column of labels there.
        tsv_numbers: Whether classes are numbers there, rather than names.
        tsv_header: The columns there, if the files do not say.
        bounds: The least and the greatest label, if numbers are to be predicted.
    """

    title: str
    texts: tuple[str, ...]
    classes: tuple[str, ...]
    metric: str
    fairseq: Recipe
    fsam: Recipe | None
    tsv_texts: tuple[str, ...]
    tsv_label: str = "label"
    tsv_numbers: bool = False
    tsv_header: tuple[str, ...] | None = None
    bounds: tuple[float, float] = (0.0, 5.0)


GLUE: Mapping[str, GlueTask] = MappingProxyType(
    {
        "cola": GlueTask(
            title="CoLA",
            texts=("sentence",),
            classes=("unacceptable", "acceptable"),
            metric="matthews",
            fairseq=Recipe(1e-5, 16, 5336, 320),
            fsam=Recipe(1e-5, 32, 2668, 160),
            tsv_texts=("sentence",),
            tsv_numbers=True,
            tsv_header=("source", "label", "mark", "sentence"),
        ),
        "sst2": GlueTask(
            title="SST-2",
            texts=("sentence",),
            classes=("negative", "positive"),
            metric="accuracy",
            fairseq=Recipe(1e-5, 32, 20935, 1256),
            fsam=Recipe(1e-5, 64, 10467, 628),
            tsv_texts=("sentence",),
            tsv_numbers=True,
        ),
        "mrpc": GlueTask(
            title="MRPC",
            texts=("sentence1", "sentence2"),
            classes=("not_equivalent", "equivalent"),
            metric="accuracy",
            fairseq=Recipe(1e-5, 16, 2296, 137),
            fsam=Recipe(1e-5, 32, 1148, 68),
            tsv_texts=("#1 String", "#2 String"),
            tsv_label="Quality",
            tsv_numbers=True,
        ),
        "stsb": GlueTask(
            title="STS-B",
            texts=("sentence1", "sentence2"),
            classes=(),
            metric="pearson-spearman",
            fairseq=Recipe(2e-5, 16, 3598, 214),
            fsam=Recipe(2e-5, 32, 1799, 107),
            tsv_texts=("sentence1", "sentence2"),
            tsv_label="score",
        ),
        "qqp": GlueTask(
            title="QQP",
            texts=("question1", "question2"),
            classes=("not_duplicate", "duplicate"),
            metric="accuracy",
            fairseq=Recipe(1e-5, 32, 113272, 28318),
            fsam=None,
            tsv_texts=("question1", "question2"),
            tsv_label="is_duplicate",
            tsv_numbers=True,
        ),
        "mnli": GlueTask(
            title="MNLI",
            texts=("premise", "hypothesis"),
            classes=("entailment", "neutral", "contradiction"),
            metric="accuracy",
            fairseq=Recipe(1e-5, 32, 123873, 7432),
            fsam=None,
            tsv_texts=("sentence1", "sentence2"),
            tsv_label="gold_label",
        ),
        "qnli": GlueTask(
            title="QNLI",
            texts=("question", "sentence"),
            classes=("entailment", "not_entailment"),
            metric="accuracy",
            fairseq=Recipe(1e-5, 32, 33112, 1986),
            fsam=None,
            tsv_texts=("question", "sentence"),
        ),
        "rte": GlueTask(
            title="RTE",
            texts=("sentence1", "sentence2"),
            classes=("entailment", "not_entailment"),
            metric="accuracy",
            fairseq=Recipe(2e-5, 16, 2036, 122),
            fsam=Recipe(2e-5, 32, 1018, 61),
            tsv_texts=("sentence1", "sentence2"),
        ),
    }
)
