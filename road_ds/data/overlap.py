"""Dev rows that say nothing of what was learned: their text was trained on."""

from road_ds.data.features import FeatureSet


def shared_texts(train: FeatureSet, dev: FeatureSet) -> list[int]:
    """The numbers of the dev rows that have the text of a train row. Only the dev part's texts are held in memory."""
    numbers: dict[tuple[str | None, ...], list[int]] = {}
    for number, text in enumerate(dev.texts()):
        numbers.setdefault(text, []).append(number)
    return sorted(number for text in train.texts() for number in numbers.pop(text, ()))
