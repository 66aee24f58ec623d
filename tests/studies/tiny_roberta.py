"""A random RoBERTa that is small enough for tests, with a tokenizer of whole words."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")


def write_tiny_roberta(folder: Path, words: Iterable[str], seed: int = 0, classes: int | None = None) -> Path:
    """Write model and tokenizer to a folder.

    Args:
        folder: Made if need be.
        words: What the tokenizer knows.
        seed: Of the weights.
        classes: With a head for so many; None writes an encoder without any.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import (
        PreTrainedTokenizerFast,
        RobertaConfig,
        RobertaForMaskedLM,
        RobertaForSequenceClassification,
    )

    known = [*SPECIAL, *sorted({word.lower() for word in words})]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        unk_token="<unk>",
        model_max_length=40,
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(folder)
    config = RobertaConfig(
        vocab_size=len(known),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=42,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        num_labels=classes or 2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RobertaForMaskedLM(config) if classes is None else RobertaForSequenceClassification(config)
    model.save_pretrained(folder)
    return folder
