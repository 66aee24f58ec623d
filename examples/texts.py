"""Texts: steppe compare --task examples/texts.py:news --methods adamw,sam --seeds 5"""

import random

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from steppe.lab import Task

TOPICS = ["match goal coach league final fans", "bank profit shares loan price", "rain storm wind snow flood sun"]
OTHER = "the a of in on after before while more less than is was will be has said today again new last next for with"


def texts(count: int) -> list[tuple[str, int]]:
    """Make up short news with their topics; put texts of your own here."""
    draw, found = random.Random(0), []
    for label in (number % 3 for number in range(count)):
        kinds = 4 * [OTHER] + TOPICS + 2 * [TOPICS[label]]  # words of all topics, of its own three times as many
        words = (draw.choice(draw.choice(kinds).split()) for _ in range(draw.randint(5, 30)))
        found.append((" ".join(words), label))
    return found


def news() -> Task:
    """Tell the topic of a text by a small encoder that begins with random weights."""
    rows = texts(1800)
    words, special = Tokenizer(models.WordLevel(unk_token="[UNK]")), ["[PAD]", "[UNK]"]
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator((text for text, _ in rows[:600]), trainers.WordLevelTrainer(special_tokens=special))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]")
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, num_labels=3, **sizes)

    def collate(rows):  # padded to the longest text of the batch
        labels = torch.tensor([label for _, label in rows])
        return {**tokenizer([text for text, _ in rows], padding=True, return_tensors="pt"), "labels": labels}

    splits = {"train": rows[:600], "validation": rows[600:1200], "test": rows[1200:]}
    return Task(lambda: BertForSequenceClassification(config), **splits, collate=collate, batch_size=16, epochs=8)
