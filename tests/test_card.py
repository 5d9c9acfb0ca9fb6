"""Model cards: the metadata that a hub shows, from what a run says."""

import yaml
from runs import tiny_config

from road_ds.config.road import RoadConfig
from road_ds.models.card import Card
from road_ds.tasks.evaluation import Evaluated
from road_ds.tasks.registry import heads


def config(**road) -> RoadConfig:
    block = tiny_config(**road)["road"]
    block["datasets"]["rte"] = {
        "task": "inference",
        "format": "hub",
        "path": "nyu-mll/glue",
        "config": "rte",
        "train": "train",
    }
    return RoadConfig.model_validate(block)


def read(text: str) -> tuple[dict, str]:
    _, metadata, body = text.split("---\n", 2)
    return yaml.safe_load(metadata), body


def test_a_card_has_what_a_hub_shows():
    about = config(model="google/electra-small-discriminator@main", languages=["en", "pt-BR"])
    scores = {
        "inference": Evaluated({"accuracy": 71.23456, "mcc": float("nan")}, {"accuracy": 34.0}, "accuracy", "accuracy", 60, [], ""),
        "places": Evaluated({"f1": 50.0}, {"f1": 30.0}, "f1", "f1", 60, [], ""),
    }  # fmt: skip
    card = Card.of_run(about, "After 5 steps.").scored(scores)
    metadata, body = read(
        card.text("inference", heads(about)["inference"], "ElectraForSequenceClassification", "electra")
    )
    results = metadata.pop("model-index")
    assert metadata == {
        "language": ["en", "pt-BR"],
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "base_model": "google/electra-small-discriminator",
        "datasets": ["nyu-mll/glue"],
        "metrics": ["accuracy"],
        "tags": ["road_ds"],
    }
    (result,) = results[0]["results"]
    assert result["metrics"] == [{"type": "accuracy", "value": 71.2346}] and result["dataset"]["name"] == "inference"
    assert "trained on places, people, inference, paraphrase, rte, this head on inference, rte." in body
    assert "After 5 steps." in body and "71.2" in body and "places  " not in body
    assert '"labels": [' in body and "AutoModelForSequenceClassification.from_pretrained" in body


def test_a_card_says_nothing_that_is_not_known():
    about = config()
    metadata, body = read(Card.of_run(about).text("qa", heads(about)["qa"], "ElectraForQuestionAnswering", "electra"))
    assert metadata == {"library_name": "transformers", "pipeline_tag": "question-answering", "tags": ["road_ds"]}
    assert "Dev scores" not in body
    bare, _ = read(Card().text("qa", heads(about)["qa"], "ElectraForQuestionAnswering", "electra"))
    assert bare == metadata
