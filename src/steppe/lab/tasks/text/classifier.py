"""An encoder of texts with a new linear head."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import UserError
from . import hub


class Classifier(nn.Module):
    """A pre-trained model with a head that is new, drawn from torch's global generator, whatever the model had.

    A model of sentence-transformers gets the mean of its outputs over a text's tokens and a linear layer. Any other is
    what ``AutoModelForSequenceClassification`` makes of it. Weights are float32, whatever the type they are stored in.

    Args:
        name: A model of the Hugging Face hub, or a folder that ``save_pretrained`` wrote.
        classes: Outputs; 1 to predict a number.

    Raises:
        UserError: The model cannot be loaded, or lacks weights besides the head's.
    """

    def __init__(self, name: str | Path, classes: int) -> None:
        super().__init__()
        self.head: nn.Linear | None = None
        if hub.is_sentence_encoder(name):
            self.encoder = _loaded("AutoModel", name)
            self.head = nn.Linear(self.encoder.config.hidden_size, classes)
        else:
            options = {"num_labels": classes, "ignore_mismatched_sizes": True}
            self.encoder = _loaded("AutoModelForSequenceClassification", name, **options)
            _draw_head(self.encoder)
        self._reads_types = "token_type_ids" in inspect.signature(self.encoder.forward).parameters

    def forward(self, x: Tensor) -> Tensor:
        """Return scores of shape (n, classes).

        Args:
            x: What `encoding.encode` returns, of shape (n, 3, length), of which no more is computed than the longest
                text needs; or ids alone, of shape (n, length), all of them.
        """
        inputs = self._inputs(x)
        scores: Tensor = self.encoder(**inputs).logits if self.head is None else self.head(self._mean(inputs))
        return scores

    def _mean(self, inputs: dict[str, Tensor]) -> Tensor:
        hidden = self.encoder(**inputs).last_hidden_state
        mask = inputs["attention_mask"][..., None].to(hidden.dtype)
        mean: Tensor = (hidden * mask).sum(1) / mask.sum(1)
        return mean

    def _inputs(self, x: Tensor) -> dict[str, Tensor]:
        if x.ndim == 2:
            return {"input_ids": x, "attention_mask": (x != self.encoder.config.pad_token_id).long()}
        used = int(x[:, 1].any(0).nonzero()[-1]) + 1
        ids, mask, types = x[..., :used].unbind(1)
        inputs = {"input_ids": ids, "attention_mask": mask}
        return {**inputs, "token_type_ids": types} if self._reads_types else inputs


def _loaded(kind: str, name: str | Path, **options: Any) -> Any:
    """Return a model in float32, all of whose encoder was found; a pooler is drawn where a checkpoint has none."""
    model, found = hub.load(kind, name, output_loading_info=True, **options)
    lost = [*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])]
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    lost = sorted(key for key in lost if key.startswith(prefix) and "pooler" not in key)
    if lost:
        raise UserError(
            f"the model {str(name)!r} lacks {len(lost)} weights of its encoder, or has them in another shape: "
            f"{lost[0]} is the first; save model and config.json again"
        )
    return model.float()


@torch.no_grad()
def _draw_head(model: Any) -> None:
    """Draw what is not part of the encoder again, as the model itself would: a checkpoint may hold a trained head."""
    encoder = {id(module) for module in model.base_model.modules()}
    for module in model.modules():
        if module is not model and id(module) not in encoder:
            for parameter in module.parameters(recurse=False):
                parameter.__dict__.pop("_is_hf_initialized", None)  # else it would be left as it is
            model._init_weights(module)
