"""Minimax-kNN-KD from the commands to the weights, against a plain PyTorch loop over steps, rows and neighbours."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import error_of, records, tiny_config
from safetensors.torch import load_file
from sklearn.feature_extraction.text import TfidfVectorizer
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification

from road_ds import train
from road_ds.__main__ import main
from road_ds.config.file import load_config
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.minimax import undisturbed
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.recipes.inputs import content
from road_ds.recipes.launcher import Launcher
from road_ds.recipes.recipe import load_recipe
from road_ds.recipes.recipe import plan as plan_recipe
from road_ds.recipes.stages import commands, inputs_for, look
from road_ds.tasks.registry import heads

K, KEEP, FACTOR, TEMPERATURE, WEIGHT = 5, 2, 0.6, 3.0, 0.7
REVIEWS = {"task": "rating", "train": "sample:reviews.train.tsv", "dev": "sample:reviews.dev.tsv",
           "columns": {"text_a": "text", "label": "stars"}, "max_rows": 60}  # fmt: skip


def reviews_config(folder: Path, **road) -> dict:
    """Two passes a step over ratings of single texts and inference; `road` overrides."""
    config = tiny_config(**road)
    config["train_batch_size"] = 16
    block = config["road"]
    block["datasets"] = {"reviews": {**REVIEWS}, "inference": block["datasets"]["inference"]}
    labels = {"type": "classification", "labels": ["1", "2", "3", "4", "5"]}
    block |= {"passes": 2, "tasks": {"rating": labels, "inference": block["tasks"]["inference"]}}
    return config


def minimax_config(folder: Path, **distill) -> dict:
    """A student of two teachers, with neighbours for its single texts."""
    block = {
        "objective": "kd",
        "temperature": TEMPERATURE,
        "weight": WEIGHT,
        "dtype": "float32",
        "cache": str(folder / "targets"),
        "teachers": {name: [str(folder / "teacher-1"), str(folder / "teacher-2")] for name in ("reviews", "inference")},
        "neighbours": {"reviews": {"text": str(folder / "more.txt"), "k": K, "keep": KEEP, "weight": FACTOR}},
        **distill,
    }
    return reviews_config(folder, distill=block, steps=4)


@pytest.fixture(scope="module")
def taught(tmp_path_factory, cache) -> Path:
    """A folder with teachers, unlabelled texts, their neighbours and soft targets; the run's JSON lies in it."""
    folder = tmp_path_factory.mktemp("minimax")
    for seed in (1, 2):
        config = reviews_config(folder, seed=seed, steps=6, output=str(folder / f"teacher-{seed}"), cache=str(cache))
        (folder / "teacher.json").write_text(json.dumps(config))
        assert train.main(["--deepspeed_config", str(folder / "teacher.json")]) == 0
    lines = Path("road_ds/data/sample_data/reviews.train.tsv").read_text().splitlines()[1:]
    texts = [line.split("\t")[0] for line in lines[40:260]]  # twenty are rows' own
    (folder / "more.txt").write_text("\n\n".join(texts) + "\n" + texts[7] + "\n")  # blank lines, a text twice
    config = minimax_config(folder)
    config["road"] |= {"cache": str(cache), "output": str(folder / "run")}
    (folder / "run.json").write_text(json.dumps(config))
    for command in ("neighbours", "teach"):
        assert main([command, "--deepspeed_config", str(folder / "run.json")]) == 0
    return folder


class Plain:
    """The student in plain PyTorch, its teachers, and texts by brute force."""

    def __init__(self, folder: Path):
        self.config, _ = load_config(folder / "run.json")
        self.tokenizer, tasks = load_tokenizer(self.config.model), heads(self.config)
        self.rows = Rows.load(self.config.datasets, tasks.by_dataset(), self.tokenizer, self.config.cache).train
        initial = build_model(self.config.model, tasks, self.tokenizer, dropout=0.0, seed=self.config.seed)
        export(initial, initial.state_dict(), self.tokenizer, folder / "initial")
        load = AutoModelForSequenceClassification.from_pretrained
        self.models = {head: load(folder / "initial" / head).train() for head in ("rating", "inference")}
        self.models["inference"].electra = self.models["rating"].electra
        self.teachers = {
            head: [load(folder / f"teacher-{seed}/model/{head}").eval() for seed in (1, 2)] for head in self.models
        }
        self.texts = list(dict.fromkeys(filter(None, (folder / "more.txt").read_text().split("\n"))))
        self.kept: list[int] = []  # where the kept stand among a row's neighbours

    def encoded(self, text: str) -> dict[str, torch.Tensor]:
        return self.tokenizer(text, truncation=True, max_length=128, return_tensors="pt")

    def target(self, head: str, inputs: dict) -> torch.Tensor:
        with torch.no_grad():
            return sum(model(**inputs).logits for model in self.teachers[head]) / 2

    def kl(self, logits: torch.Tensor, target: torch.Tensor, temperature: float) -> torch.Tensor:
        shares = (target / temperature).softmax(-1)
        return (shares * (shares.log() - (logits / temperature).log_softmax(-1))).sum()

    def neighbours(self, text: str) -> list[str]:
        judge = TfidfVectorizer().fit(self.texts)
        cosines = (judge.transform(self.texts) @ judge.transform([text]).T).toarray()[:, 0]
        order = [i for i in np.argsort(-cosines, kind="stable") if self.texts[i] != text]
        return [self.texts[i] for i in order[:K]]

    def loss_of(self, name: str, row: int) -> torch.Tensor:
        head, feature = self.config.head_of(name), self.rows[name][row]
        inputs = {key: torch.tensor([getattr(feature, key).tolist()]) for key in ("input_ids", "token_type_ids")}
        logits, target = self.models[head](**inputs).logits, self.target(head, inputs)
        hard = F.cross_entropy(logits, torch.tensor([int(feature.labels[0])]))
        loss = (1 - WEIGHT) * hard + WEIGHT * TEMPERATURE**2 * self.kl(logits, target, TEMPERATURE)
        if name != "reviews":
            return loss
        found = []
        for text in self.neighbours(self.rows[name].example(feature.example).text_a):
            inputs = self.encoded(text)
            with torch.no_grad():
                far = self.kl(self.models[head](**inputs).logits, self.target(head, inputs), 1.0)
            found.append((float(far), inputs))
        order = sorted(range(K), key=lambda place: -found[place][0])[:KEEP]
        self.kept += order
        for place in order:
            inputs = found[place][1]
            term = self.kl(self.models[head](**inputs).logits, self.target(head, inputs), TEMPERATURE)
            loss = loss + FACTOR * TEMPERATURE**2 * term / KEEP
        return loss

    def train(self) -> list[float]:
        parameters = list({id(p): p for model in self.models.values() for p in model.parameters()}.values())
        passes, steps = plan(self.config, 16, {name: source.lengths for name, source in self.rows.items()})
        losses = []
        for step in range(steps):
            total = sum(
                torch.stack([self.loss_of(taken.dataset, row) for row in taken.rows]).mean() / self.config.passes
                for taken in passes.draw(step)
            )
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
            norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
            with torch.no_grad():
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        parameter -= 0.1 * min(1.0, 1.0 / (float(norm) + 1e-6)) * gradient
            losses.append(total.item())
        return losses


@pytest.fixture(scope="module")
def plain(taught):
    """The weights and losses of the plain loop."""
    loop = Plain(taught)
    losses = loop.train()
    assert {*loop.kept} == {*range(K)}, "the kept are not simply the nearest, and not always the same"
    return {head: {k: v.detach() for k, v in model.state_dict().items()} for head, model in loop.models.items()}, losses


def compare(folder: Path, plain, tolerance: float = 1e-6) -> None:
    weights, losses = plain
    lines = [line for line in records(folder) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=10 * tolerance)
    for head, expected in weights.items():
        found = load_file(folder / "model" / head / "model.safetensors")
        for name, value in expected.items():
            error = float((found[name] - value).abs().max())
            assert error < tolerance, f"{head} {name}: off by {error:.2g}"


def staged(taught: Path, folder: Path, cache: Path, stage: int, micro: int) -> Path:
    """The file of the taught run under a ZeRO stage."""
    config = minimax_config(taught)
    config |= {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": stage}}
    if stage == 3:  # by default parameters this small are never let go
        config["zero_optimization"] |= {"stage3_param_persistence_threshold": 0}
    config["road"] |= {"cache": str(cache), "output": str(folder / f"zero-{stage}")}
    path = folder / f"zero-{stage}.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(("stage", "micro"), [(0, 8), (1, 2), (2, 4), (3, 2)])
def test_training_equals_a_plain_loop_over_rows_and_neighbours(plain, taught, cache, tmp_path, stage, micro):
    assert train.main(["--deepspeed_config", str(staged(taught, tmp_path, cache, stage, micro))]) == 0
    compare(tmp_path / f"zero-{stage}", plain)
    line = next(line for line in records(tmp_path / f"zero-{stage}") if "neighbours/reviews" in line)
    assert line["loss/reviews"] == pytest.approx(
        (1 - WEIGHT) * line["hard/reviews"]
        + WEIGHT * TEMPERATURE**2 * line["soft/reviews"]
        + FACTOR * line["neighbours/reviews"],
        rel=1e-5,
    )
    assert "neighbours/inference" not in line
    drawn = 8 * line["datasets"].count("reviews")
    assert (line["rows_trained"], line["rows_asked"]) == (
        16 + drawn * KEEP,
        drawn * K,
    ) and "rows_of_teachers" not in line
    found = json.loads((tmp_path / f"zero-{stage}" / "results.json").read_text())
    texts = len({*np.load(taught / "targets" / "neighbours" / "reviews" / "neighbours.npy").ravel()})
    assert found["rows_of_soft_targets"] == 2 * (60 + 60 + texts) and found["rows_of_teachers"] == 0
    assert found["rows_trained"] == sum(line.get("rows_trained", 0) for line in records(tmp_path / f"zero-{stage}"))


@pytest.mark.parametrize("stage", range(4))
def test_two_processes_give_the_same_under_every_stage(plain, taught, cache, tmp_path, stage):
    path = staged(taught, tmp_path, cache, stage, micro=2)
    result = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / f"zero-{stage}", plain)


def test_online_teachers_read_the_neighbours_too(plain, taught, config_file, tmp_path):
    assert train.main(["--deepspeed_config", str(config_file(minimax_config(taught, source="online")))]) == 0
    compare(tmp_path / "run", plain)
    for line in (line for line in records(tmp_path / "run") if "loss" in line):
        assert line["rows_of_teachers"] == 2 * (line["rows_trained"] + line.get("rows_asked", 0))


def test_a_resumed_run_ends_with_the_same_bits(taught, config_file, tmp_path):
    """Dropout on: choosing draws no random number, and what is drawn goes on where it was."""
    for name, every in (("whole", 0), ("halves", 2)):
        config = minimax_config(taught)
        config["road"] |= {"dropout": 0.1, "save_every": every, "output": str(tmp_path / name)}
        path = config_file(config, name)
        assert train.main(["--deepspeed_config", str(path)]) == 0
    (tmp_path / "halves" / "checkpoints" / "step-00000004").rename(tmp_path / "moved")
    assert train.main(["--deepspeed_config", str(path), "--resume"]) == 0
    ends = [load_file(tmp_path / name / "model" / "rating" / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_student_that_is_asked_is_not_disturbed():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    before, rows = torch.get_rng_state(), torch.ones(8, 4)
    with undisturbed(model):
        found = model(rows)
    assert torch.equal(found, model[0](rows)) and not found.requires_grad
    assert torch.equal(torch.get_rng_state(), before) and model.training


# ------------------------------------------------------------------------------------- the command, and what it leaves


@pytest.fixture
def copy(taught, config_file, tmp_path, cache, command):
    """A place of its own for neighbours; what a command says there, `changes` being settings of reviews' neighbours."""

    def run(*words: str, **changes) -> tuple[int, str, str]:
        config = minimax_config(taught, cache=str(tmp_path / "targets"))
        config["road"]["distill"]["neighbours"]["reviews"] |= {"text": str(tmp_path / "more.txt")} | changes
        return command(*words, "--deepspeed_config", config_file(config))

    (tmp_path / "more.txt").write_bytes((taught / "more.txt").read_bytes())
    return tmp_path / "targets" / "neighbours" / "reviews", run


def test_what_is_there_and_holds_is_kept_and_what_changed_is_found_again(copy, tmp_path):
    folder, run = copy
    code, out, err = run("neighbours")
    assert (code, err.count("warning")) == (0, 0), err
    assert out.split("\n")[2].split()[:3] == ["reviews", "60", "220"], out
    before = (folder / "manifest.json").stat().st_ino
    assert run("neighbours")[0] == 0 and (folder / "manifest.json").stat().st_ino == before

    with (tmp_path / "more.txt").open("a") as file:
        file.write("The view was grand.\n")
    assert "neighbours of reviews are of another text; run `python -m road_ds neighbours" in error_of(run("teach"))
    code, out, err = run("neighbours")
    assert code == 0 and "are of another text: found again" in err and " 221 " in out
    assert "another k; run" in error_of(run("teach", k=6))

    data = bytearray((folder / "neighbours.npy").read_bytes())
    data[-1] ^= 1
    (folder / "neighbours.npy").write_bytes(data)
    assert "neighbours.npy: has changed since it was saved" in error_of(run("teach"))
    code, _, err = run("neighbours")
    assert code == 0 and "neighbours.npy: has changed since it was saved (sha256 differs): found again" in err
    assert run("teach")[0] == 0


def test_training_refuses_what_is_not_there(copy, capsys, tmp_path):
    _, run = copy
    assert "the neighbours of reviews are not there; run `python -m road_ds neighbours" in error_of(run("teach"))
    assert train.main(["--deepspeed_config", str(tmp_path / "run.json")]) == 2
    assert "the neighbours of reviews are not there; run" in capsys.readouterr().err
    assert run("neighbours")[0] == 0
    assert train.main(["--deepspeed_config", str(tmp_path / "run.json")]) == 2
    assert "are not there; run `python -m road_ds teach" in capsys.readouterr().err


def test_json_lines_tables_and_several_files_are_texts_too(copy, tmp_path):
    folder, run = copy
    texts = [line for line in (tmp_path / "more.txt").read_text().splitlines() if line]
    rows = "".join(json.dumps({"body": text, "text_b": "other"}) + "\n" for text in texts[:100])
    (tmp_path / "a.jsonl").write_text(rows)
    (tmp_path / "b.tsv").write_text("n\tbody\n" + "".join(f"1\t{text}\n" for text in texts[90:]))
    files = [str(tmp_path / "a.jsonl"), str(tmp_path / "b.tsv")]
    assert run("neighbours")[0] == 0
    alone = [np.load(folder / name) for name in ("neighbours.npy", "similarity.npy")]
    code, out, err = run("neighbours", text=files, column="body")
    assert code == 0 and "of another text: found again" in err and " 220 " in out
    assert all(
        np.array_equal(a, np.load(folder / n)) for a, n in zip(alone, ("neighbours.npy", "similarity.npy"), strict=True)
    )


def test_an_encoder_finds_other_neighbours(copy, taught):
    folder, run = copy
    assert run("neighbours")[0] == 0
    words = np.load(folder / "similarity.npy")
    code, _, err = run("neighbours", by=str(taught / "teacher-1"))
    assert "the run has several models" in error_of((code, "", err))
    code, _, err = run("neighbours", by=str(taught / "teacher-1" / "model" / "rating"))
    assert code == 0 and "of another encoder: found again" in err
    assert (np.load(folder / "similarity.npy")[:, 0] > words[:, 0]).all()


@pytest.mark.parametrize(("changes", "said"), [
    ({"keep": 6}, "neighbours.reviews: keep 6 of k 5 neighbours: keep must be at most k"),
    ({"k": 0}, "neighbours.reviews.k: got 0"),
    ({"text": "nowhere.txt"}, "neighbours.reviews.text: nowhere.txt is no file: expected texts"),
    ({"text": ["a.txt", "a.txt"]}, "neighbours.reviews.text: a file is named twice: a.txt, a.txt"),
    ({"k": 220, "keep": 4}, "220 distinct texts, one of which may be the row's own: too few for k = 220"),
    ({"by": "no/where/such"}, "no/where/such: no such folder"),
    ({"column": "body", "text": "sample:reviews.train.tsv"}, "reviews.train.tsv:2: no column 'body'"),
    ({"keeps": 4}, "neighbours.reviews.keeps: unknown key; did you mean 'keep'"),
], ids=lambda value: value[:20] if isinstance(value, str) else "")  # fmt: skip
def test_bad_settings_are_one_error(copy, changes, said):
    assert said in error_of(copy[1]("neighbours", **changes))


@pytest.mark.parametrize(("dataset", "said"), [
    ("inference", "neighbours.inference: neighbours are of single texts to be classified, its rows are pairs"),
    ("review", "neighbours.review: no data set with teachers, which say what a text without a label means; did you mean 'reviews'"),
])  # fmt: skip
def test_only_single_texts_that_have_teachers_get_neighbours(taught, config_file, command, dataset, said):
    config = minimax_config(taught, neighbours={dataset: {"text": str(taught / "more.txt")}})
    assert said in error_of(command("neighbours", "--deepspeed_config", config_file(config)))


def test_an_empty_or_unreadable_text_is_named(copy, tmp_path):
    (tmp_path / "more.txt").write_text("\n\n")
    assert "more.txt: the data set is empty" in error_of(copy[1]("neighbours"))
    if os.geteuid() != 0:
        (tmp_path / "more.txt").chmod(0)
        assert "cannot be read" in error_of(copy[1]("neighbours"))


def test_data_sets_left_out_take_their_neighbours_along(taught, config_file, command):
    config = minimax_config(taught)
    config["road"]["use"] = ["inference"]
    assert "names no data set: there is nothing to find" in error_of(
        command("neighbours", "--deepspeed_config", config_file(config))
    )


def test_check_says_what_a_visit_costs(taught, config_file, command):
    code, out, _ = command("check", config_file(minimax_config(taught)))
    assert code == 0 and "neighbours of reviews: 5 of each row by tfidf, 2 learned from at each visit" in out


def test_a_recipe_finds_neighbours_first_and_names_their_text(copy, tmp_path):
    copy[1]("neighbours")
    (tmp_path / "r.json").write_text(json.dumps({"stages": {"a": {"config": "run.json"}}}))
    runs = plan_recipe(load_recipe(tmp_path / "r.json"), tmp_path / "r.json", tmp_path / "out")
    (step,) = look(runs)
    assert step.kind == "neighbours, teach, train"
    words = ("neighbours", "teach", "train")
    launched = [
        [Path(word).stem for word in line if not word.startswith("road.")] for line in commands(step, Launcher([]))
    ]
    assert [next(word for word in words if word in line) for line in launched] == [*words]
    named = f"neighbours of reviews: {tmp_path / 'more.txt'}"
    inputs, missing = inputs_for(step.run, step.config, step.ds, {})
    assert len(inputs[named]) == 64 and not missing
    (tmp_path / "more.txt").unlink()
    content.cache_clear()
    assert any(
        "more.txt: cannot be read" in fault for fault in inputs_for(step.run, step.config, step.ds, {})[1].values()
    )
