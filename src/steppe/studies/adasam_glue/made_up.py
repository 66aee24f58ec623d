"""Made-up rows in GLUE's own layout, and a model as small as they are: to see that everything runs."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from ..._extras import how_to_install
from ...lab.errors import UserError
from ...lab.files import write_atomically
from ...lab.tasks.text.glue_tasks import GLUE, GlueTask
from ...lab.tasks.text.hub import quiet

TRAIN, DEV = 40, 16
_GOOD = ("bright", "clear", "fine", "kind", "quick", "warm")
_BAD = ("cold", "dull", "grey", "harsh", "slow", "wet")
_PLAIN = ("a", "and", "day", "dog", "house", "is", "man", "river", "the", "town", "was", "with")
_SEED = 0


def write_glue(folder: Path) -> Path:
    """Write all eight tasks as tab-separated files, each in a folder of its own; return the folder of all."""
    for name, task in GLUE.items():
        suffix = "_matched" if name == "mnli" else ""
        for split, count in (("train", TRAIN), (f"dev{suffix}", DEV)):
            draw = random.Random(f"{_SEED}-{name}-{split}")
            columns = _columns(task)
            lines = [] if task.tsv_header else ["\t".join(columns)]
            for number in range(count):
                values = _row(task, number, draw)
                lines.append("\t".join(values.get(column, str(number)) for column in columns))
            write_atomically(folder / task.title / f"{split}.tsv", "\n".join(lines) + "\n")
    return folder


def write_model(folder: Path) -> Path:
    """Write a RoBERTa of two small layers with random weights, and a tokenizer that knows the words of the rows.

    A folder that is there stays as it is.

    Raises:
        UserError: transformers is missing.
    """
    try:
        from tokenizers import Tokenizer, models, pre_tokenizers, processors
        from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel
    except ImportError as error:
        raise UserError(how_to_install("transformers", "text")) from error
    import torch

    if folder.is_dir():
        return folder
    special = ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {word: i for i, word in enumerate((*special, *_GOOD, *_BAD, *_PLAIN))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    names = {"bos_token": "<s>", "cls_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "sep_token": "</s>"}
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=30, **names
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        model = RobertaModel(
            RobertaConfig(
                vocab_size=len(vocabulary),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
            )
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as half, quiet():
        made = Path(half) / "model"
        model.save_pretrained(made)
        fast.save_pretrained(made)
        made.rename(folder)
    return folder


def _columns(task: GlueTask) -> list[str]:
    return list(task.tsv_header or ("index", *task.tsv_texts, task.tsv_label))


def _row(task: GlueTask, number: int, draw: random.Random) -> dict[str, str]:
    """Make a row whose label can be learnt: good words make a sentence, two sentences of one kind make a pair."""
    classes = len(task.classes) or 2
    chosen = number % classes
    first = draw.choice((_GOOD, _BAD))
    if len(task.tsv_texts) == 1:
        texts = [_sentence((_BAD, _GOOD)[chosen], draw)]
    else:
        other = _BAD if first is _GOOD else _GOOD
        texts = [_sentence(first, draw), _sentence((other, first, _PLAIN)[chosen], draw)]
    label = str(chosen) if task.tsv_numbers else task.classes[chosen] if task.classes else f"{5 * chosen:.3f}"
    return {**dict(zip(task.tsv_texts, texts, strict=True)), task.tsv_label: label}


def _sentence(words: tuple[str, ...], draw: random.Random) -> str:
    return " ".join([*draw.sample(_PLAIN, 3), *draw.sample(words, 3)])
