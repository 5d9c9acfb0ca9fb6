"""A tokenizer that does not go with the model, or knows nothing of the texts, is refused wherever a model is used."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from runs import TINY_ELECTRA, error_of, tiny_config
from transformers import AutoConfig, AutoTokenizer, ElectraConfig, ElectraForSequenceClassification

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.file import load_config
from road_ds.config.road import DatasetSpec, ModelSpec
from road_ds.data.features import load_features
from road_ds.distillation.kd import KD
from road_ds.distillation.teachers import pupil
from road_ds.models.configuration import base_config, load_tokenizer
from road_ds.tasks.registry import heads, task_from

LABELS = ["entailment", "neutral", "contradiction"]
NONE_LEFT = (
    "the tokenizer has 5 entries, the embedding 1,066 rows (vocab_size): {0} holds none of tokenizer.json, vocab.txt"
)
TOO_MANY = "the tokenizer has 1,068 entries, ids up to 1067, the embedding 1,066 rows (vocab_size): no row for '[ONE]', '[TWO]'"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A model folder of the tiny ELECTRA, with the sample's tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    names = {"id2label": dict(enumerate(LABELS)), "label2id": {label: i for i, label in enumerate(LABELS)}}
    ElectraForSequenceClassification(ElectraConfig(**TINY_ELECTRA, vocab_size=len(tokenizer), **names)).save_pretrained(
        folder
    )
    tokenizer.save_pretrained(folder)
    return folder


def without_tokenizer(folder: Path) -> None:
    for file in folder.glob("*"):
        if file.name not in ("config.json", "model.safetensors"):
            file.unlink()


def with_two_more(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["[ONE]", "[TWO]"])
    tokenizer.save_pretrained(folder)


@pytest.fixture(params=[(without_tokenizer, NONE_LEFT), (with_two_more, TOO_MANY)], ids=["none", "two more"])
def faulty(request, model, tmp_path):
    change, said = request.param
    folder = tmp_path / "faulty"
    shutil.copytree(model, folder)
    change(folder)
    return folder, said.format(folder)


@pytest.mark.parametrize("use", ["check", "train", "predict", "evaluate", "teacher"])
def test_it_is_refused_wherever_a_model_is_used(faulty, use, command, config_file, tmp_path, capsys):
    folder, said = faulty
    road = {"use": ["inference"], **({} if use == "teacher" else {"model": str(folder)})}
    path = config_file(tiny_config(**road))
    if use == "train":
        assert train.main(["--deepspeed_config", str(path)]) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "run" / "config.json").exists()
    elif use == "teacher":
        config, _ = load_config(path)
        tokenizer = load_tokenizer(config.model)
        with pytest.raises(RoadError) as error:
            pupil("inference", heads(config), None, tokenizer, taught_by(folder)).accept(str(folder))
        assert f"road.distill.teachers.inference: {folder}: {said}" in str(error.value)
    else:
        rows = "sample:inference.dev.jsonl"
        arguments = {"check": [path], "predict": [folder, "--text", "a"], "evaluate": [folder, "--data", rows]}[use]
        assert said in error_of(command(use, *arguments))


def taught_by(teacher: object) -> KD:
    return KD(objective="kd", teachers={"inference": [str(teacher)]})


def copied(model: Path, folder: Path, **task) -> str:
    """An exported model whose task has more settings."""
    shutil.copytree(model, folder)
    (folder / "road_task.json").write_text(json.dumps({"type": "classification", "labels": LABELS, **task}))
    return str(folder)


@pytest.mark.parametrize("rows", [True, False, None])
@pytest.mark.parametrize("head", [True, False, None])
def test_a_teacher_of_pairs_does_not_teach_lone_rows(model, tmp_path, config_file, rows, head):
    config, _ = load_config(config_file(tiny_config(use=["inference"])))
    teacher = copied(model, tmp_path / "teacher", pairs=head)
    own = pupil(
        "inference", heads(config), SimpleNamespace(pairs=rows), load_tokenizer(config.model), taught_by(teacher)
    )
    if head in (None, rows):
        assert own.accept(teacher) == Path(teacher)
        return
    named = {True: "pairs of texts", False: "lone texts", None: "both"}
    said = f"road.distill.teachers.inference: {teacher} reads {named[head]}, the data set's rows are {named[rows]}"
    for accept in (own.accept, own.accept_beside):
        with pytest.raises(RoadError, match=re.escape(said)):
            accept(teacher)


def test_check_looks_at_teachers_as_training_does(model, tmp_path, config_file, command):
    good, lone = copied(model, tmp_path / "good"), copied(model, tmp_path / "lone", pairs=False)
    bare, added = copied(model, tmp_path / "bare"), copied(model, tmp_path / "added")
    without_tokenizer(tmp_path / "bare")
    with_two_more(tmp_path / "added")
    other = copied(model, tmp_path / "other")
    words = json.loads((tmp_path / "other" / "tokenizer.json").read_text())
    words["model"]["vocab"] |= {"the": words["model"]["vocab"]["in"], "in": words["model"]["vocab"]["the"]}
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(words))

    def check(names: list[str], **more):
        distill = {"objective": "kd", "teachers": {"inference": names}, **more}
        return command("check", config_file(tiny_config(use=["inference"], distill=distill)))

    assert check([good, other])[0] == 0
    said = error_of(check([good, lone, bare, added, str(tmp_path / "none")])).splitlines()
    expected = (f"{lone} reads lone texts", NONE_LEFT.format(bare), TOO_MANY, f"{tmp_path}/none: no such folder")
    assert len(said) == 4 and all(part in line for part, line in zip(expected, said, strict=True)), said
    assert "other has another tokenizer than the student" in error_of(check([good, other], source="online"))


@pytest.mark.parametrize("rows", [1066, 1072, 1088, 1152, 2000])
def test_an_embedding_padded_to_a_multiple_is_the_models_own(model, tmp_path, rows):
    tokenizer = AutoTokenizer.from_pretrained(model)
    AutoConfig.from_pretrained(model, vocab_size=rows).save_pretrained(tmp_path)
    assert base_config(ModelSpec(name=str(tmp_path)), tokenizer, None).vocab_size == rows


def test_the_vocabulary_of_fresh_weights():
    """Too few rows are refused, and so many more than the tokenizer fills that its own export would be refused."""
    sample = ModelSpec(architecture="electra", tokenizer="sample:tokenizer", config={"vocab_size": 1065})
    tokenizer = load_tokenizer(sample)
    with pytest.raises(
        RoadError, match=r"road\.model\.config\.vocab_size: the tokenizer has 1,066 entries, .* 1,065 rows"
    ):
        base_config(sample, tokenizer, None)
    large = sample.model_copy(update={"config": {"vocab_size": 5000}})
    with pytest.raises(
        RoadError, match=r"1,066 entries, the embedding 5,000 rows .*: give at most 2,132, or leave it out"
    ):
        base_config(large, tokenizer, None)
    for rows in (1066, 2132):
        assert (
            base_config(sample.model_copy(update={"config": {"vocab_size": rows}}), tokenizer, None).vocab_size == rows
        )


TEXTS = {"known": "the mill is near the town", "foreign": "ⴰⵣⵓⵍ ⴰⴳⵎⴰ"}


@pytest.mark.parametrize(("known", "foreign", "refused"), [(6, 5, False), (5, 6, True), (0, 1, True), (1, 0, False)])
def test_rows_of_which_most_are_unknown_words_are_refused(tmp_path, known, foreign, refused):
    task = task_from({"type": "classification", "labels": ["no", "yes"], "max_length": 32}, "t")
    rows = [{"text": TEXTS["known"], "label": "no"}] * known + [{"text": TEXTS["foreign"], "label": "yes"}] * foreign
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec, tokenizer = DatasetSpec(task="t", train=str(file)), AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    if not refused:
        assert len(load_features("rows", "train", spec, task, tokenizer, tmp_path)) == known + foreign
        return
    for _ in range(2):  # encoded now, and found in the cache
        with pytest.raises(RoadError) as error:
            load_features("rows", "train", spec, task, tokenizer, tmp_path)
        assert f"datasets.rows.train: of {foreign} of {known + foreign} rows the tokenizer, of 1,066" in str(
            error.value
        )


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_tokenizer_that_the_library_made_up_reads_nothing(tmp_path, config_file, command, architecture):
    """Fresh weights fit a tokenizer of any size: the rows tell. RoBERTa's leaves unknown words out altogether."""
    AutoConfig.for_model(architecture).save_pretrained(tmp_path / "tokenizer")
    config = tiny_config(use=["inference"])
    config["road"]["model"]["tokenizer"] = str(tmp_path / "tokenizer")
    said = error_of(command("check", config_file(config)))
    assert "datasets.inference.train: of 60 of 60 rows the tokenizer, of 5 entries, knows less than half" in said
    assert f"{tmp_path / 'tokenizer'} holds none of tokenizer.json, vocab" in said
