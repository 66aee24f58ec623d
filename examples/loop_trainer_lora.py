"""LoRA in Hugging Face's Trainer: steppe compare --task examples/loop_trainer_lora.py:train"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from steppe import SharpnessAware
from steppe.integrations.transformers import SharpnessAwareTrainerMixin
from steppe.lab import loop

G = torch.Generator().manual_seed(0)
TEXTS = torch.arange(15) + 15 * (torch.rand(1600, 15, generator=G) < torch.rand(1600, 1, generator=G))
ROWS = [{"input_ids": text, "labels": int((text < 15).sum() > 7)} for text in TEXTS]  # are most words of the first 15?
SMALL = BertConfig(vocab_size=30, hidden_size=64, num_hidden_layers=1, num_attention_heads=4, intermediate_size=128)


class SharpTrainer(SharpnessAwareTrainerMixin, Trainer): ...


@loop(metric_name="accuracy", higher_is_better=True, epochs=3)
def train(run):
    def scores(rows):
        with run.paused():
            found = trainer.predict(rows)
        right = found.predictions.argmax(-1) == found.label_ids
        return {"accuracy": 100 * right.mean(), "validation_loss": found.metrics["test_loss"]}

    class Report(TrainerCallback):
        def on_epoch_end(self, *args, **kwargs):
            run.report(**scores(ROWS[800:1200]))

    model = BertForSequenceClassification(SMALL)  # or AutoModelForSequenceClassification.from_pretrained(...)
    model = get_peft_model(model, LoraConfig("SEQ_CLS", target_modules="all-linear"))
    lora, head = ([p for n, p in model.named_parameters() if part in n] for part in ("lora_", "modules_to_save"))
    opt = run.optimizer([{"params": lora}, {"params": head, "rho": 0.0}])  # the head is trained, but does not climb
    options = {"num_train_epochs": run.epochs, "seed": run.seed, "use_cpu": run.device.type == "cpu"}
    options |= {"output_dir": "runs/trainer-lora"}
    args = Arguments(per_device_train_batch_size=16, report_to="none", save_strategy="no", disable_tqdm=True, **options)
    more = {"train_dataset": ROWS[:800], "callbacks": [Report()], "optimizers": (opt, None)}
    sharp = isinstance(opt, SharpnessAware)
    trainer = SharpTrainer(model, args, fraction=run.fraction, **more) if sharp else Trainer(model, args, **more)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return {"accuracy": scores(ROWS[1200:])["accuracy"]}
