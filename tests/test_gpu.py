"""The methods and the newer tasks on a GPU against a CPU's float32: the same runs, in float32 to rounding, in half precision to its own.

    pytest -n 4 -m gpu tests/test_gpu.py     # without a GPU the same, in float32 and bf16: a rehearsal

What the runs are compared with is held against plain loops by the tests of each method: runs on a CPU in float32, which this file is as a script.
What a device draws (FreeLB's beginnings, MATE-KD's noise) is left out of both where they shall be equal.
"""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import pretraining, records, tiny_config
from safetensors.torch import load_file
from test_adversarial import run_config as adversarial_config
from test_adversarial import save_generator
from test_average import average_config
from test_freelb import run_config as freelb_config
from test_layers_distilled import CKD, HIDDEN, RKD, layers_config
from test_layers_distilled import teachers as teachers
from test_multi_label import LABELS, word_rows, words_config
from test_multiple_choice import choice_config
from test_multiple_choice import rows as rows
from test_neighbours import minimax_config
from test_neighbours import taught as taught
from test_token_classification import config_of as words_with_tags
from test_token_classification import tags
from torch.nn import functional as F

from road_ds import train
from road_ds.config.file import load_config
from road_ds.data.masking import Masking, blocks_of
from road_ds.distillation.adversarial import Gaps
from road_ds.distillation.freelb import FreeLB
from road_ds.models.generator import Vocabulary

pytestmark = pytest.mark.gpu

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
FP32, HALF = 1e-4, 0.02  # of a value; as much of 1 where it is small
DRAWN = ("disagreement", "generated/", "neighbours/")  # rounding moves a choice of tokens or texts, and with it these
LAYERS = {
    "hidden": HIDDEN,
    "pkd": {"method": "pkd", "weight": 2.0},
    "rkd": RKD,
    "ckd": CKD,
    "alp": {"method": "alp", "weight": 0.3},
    "tinybert": {"method": "tinybert", "weight": 0.1},
}
TASKS = ["multi_label", "multiple_choice", "token_classification"]
METHODS = [*LAYERS, "freelb", "adversarial", "neighbours", "average", "text"]


def config_of(name: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """A run of seconds with a method."""
    if name == "neighbours":
        return minimax_config(request.getfixturevalue("taught"))
    if name == "average":
        return average_config()
    if name == "text":
        return pretraining(request.getfixturevalue("text"))
    if name in TASKS:
        return task_config(name, request, folder)
    trained = request.getfixturevalue("teachers")
    if name in LAYERS:
        return layers_config(trained, LAYERS[name])
    if name == "freelb":
        return freelb_config(Path(trained[0]) / "inference")
    (folder / "plain.json").write_text(json.dumps(tiny_config()))
    save_generator(folder / "generator", load_config(folder / "plain.json")[0])
    (folder / "teacher").symlink_to(trained[0])
    return adversarial_config(folder, log_every=1)


def task_config(name: str, request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    """A run of seconds of one task."""
    cache = request.getfixturevalue("cache")
    if name == "multi_label":
        return words_config(word_rows(folder), LABELS, cache)
    if name == "multiple_choice":
        return choice_config(request.getfixturevalue("rows"), cache)
    tags.write(folder)
    return words_with_tags(folder, cache)


def in_precision(config: dict[str, Any], precision: str, folder: Path) -> dict[str, Any]:
    """The same run; fp16 begins with a scale that skips no step."""
    road = config["road"] | {"precision": precision, "output": str(folder / precision)}
    changed = config | {"road": road, "zero_optimization": {"stage": 0 if precision == "fp32" else 1}}
    if precision == "fp16":
        changed |= {"fp16": {"enabled": True, "initial_scale_power": 8}, "road": road | {"precision": "auto"}}
    return changed


def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out the noise that is drawn on a device, which a CPU and a GPU draw differently; places are drawn on the host."""
    drawn = Gaps.drawn

    def without(*arguments: Any, **options: Any) -> Gaps:
        gaps = drawn(*arguments, **options)
        return replace(gaps, noise=torch.zeros_like(gaps.noise))

    monkeypatch.setattr(Gaps, "drawn", without)
    begin = FreeLB.begin
    monkeypatch.setattr(FreeLB, "begin", lambda *arguments: torch.zeros_like(begin(*arguments)))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [line for line in records(folder) if "loss" in line]


def compared(found: list[dict], expected: list[dict], tolerance: float, spared: tuple[str, ...] = ()) -> float:
    """The worst error of all that both measured, in tolerances."""
    assert [line["datasets"] for line in found] == [line["datasets"] for line in expected]
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        assert one["applied"] and other["applied"]
        parts = [key for key in other if key == "loss" or "/" in key or key == "disagreement"]
        for key in parts:
            assert np.isfinite(one[key]), f"step {one['step']}: {key} is {one[key]}"
            if key.startswith(spared):
                assert 0.5 < one[key] / other[key] < 2, (
                    f"step {one['step']}: {key} is {one[key]}, expected {other[key]}"
                )
                continue
            worst = max(worst, abs(one[key] - other[key]) / max(1.0, abs(other[key])) / tolerance)
            assert worst <= 1, f"step {one['step']}: {key} is {one[key]}, expected {other[key]}"
        for key in ("rows_trained", "rows_asked", "rows_of_teachers"):
            assert one.get(key) == other.get(key)
    return worst


@pytest.mark.parametrize("name", [*METHODS, *TASKS])
def test_a_method_trains_as_on_a_cpu(name, request, config_file, tmp_path, record_property, monkeypatch):
    config = config_of(name, request, tmp_path)
    config["road"].setdefault("cache", str(request.getfixturevalue("cache")))
    reference = config_file(in_precision(config, "fp32", tmp_path / "cpu"), "reference")
    done = run_forked(__file__, "--deepspeed_config", reference)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = lines_of(tmp_path / "cpu" / "fp32")
    for precision in ("fp32", "bf16", "fp16")[: 3 if CUDA else 2]:
        path = config_file(in_precision(config, precision, tmp_path), precision)
        exact = precision == "fp32"
        with monkeypatch.context() as only:
            if exact:
                quiet(only)
            assert train.main(["--deepspeed_config", str(path)]) == 0
        found = lines_of(tmp_path / precision)
        worst = compared(found, expected, FP32 if exact else HALF, () if exact else DRAWN)
        record_property(precision, worst)
        for file in (tmp_path / "cpu" / "fp32" / "model").glob("*/model.safetensors"):
            ours = load_file(tmp_path / precision / file.relative_to(tmp_path / "cpu" / "fp32"))
            for key, value in load_file(file).items():
                apart = float((ours[key].float() - value).norm())
                assert apart <= (FP32 if exact else HALF) * (1 + float(value.norm())), f"{precision}: {key} by {apart}"


def test_a_resumed_pretraining_goes_on_where_it_was(text, config_file, tmp_path):
    """Dropout, masks and samples are drawn again: the step after the checkpoint is the same to a GPU's rounding."""
    config = pretraining(text, save_every=2, dropout=0.1)
    config = in_precision(config, "bf16", tmp_path)
    path = config_file(config)
    assert train.main(["--deepspeed_config", str(path)]) == 0
    resumed = shutil.copytree(tmp_path / "bf16", tmp_path / "resumed")
    shutil.rmtree(resumed / "checkpoints" / "step-00000004")
    shutil.rmtree(resumed / "model")
    assert train.main(["--deepspeed_config", str(path), "--set", f"road.output={resumed}", "--resume"]) == 0
    compared(lines_of(resumed)[:3], lines_of(tmp_path / "bf16")[:3], 1e-3)
    compared(lines_of(resumed), lines_of(tmp_path / "bf16"), HALF)


def test_the_generators_head_never_holds_the_logits():
    """30,522 entries; the loss and its gradient against float32 on whole logits, of the first rows."""
    masked, entries, width = (2**16 if CUDA else 2**9), 30522, 64
    draws = torch.Generator(DEVICE).manual_seed(0)
    made = [torch.randn(*shape, generator=draws, device=DEVICE) for shape in ((masked, width), (entries, width))]
    states, weight = (tensor.bfloat16().requires_grad_() for tensor in made)
    head = Vocabulary(torch.nn.Parameter(weight.detach()), torch.nn.Parameter(torch.zeros(entries).to(states)))
    labels = torch.randint(entries, (masked,), generator=draws, device=DEVICE)
    noise = torch.zeros(masked, sum(blocks_of(entries)), device=DEVICE)
    masking = replace(Masking.idle(DEVICE), noise=noise, vocabulary=entries)
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    loss, losses, sampled, _ = head(states, labels, masking)
    loss.backward()
    if CUDA:
        taken, whole = torch.cuda.max_memory_allocated() - before, 2 * masked * entries
        assert taken < whole / 2, f"{taken / 2**20:.0f} MiB, the logits {whole / 2**20:.0f}"
    few = states.detach()[:256].float().requires_grad_()
    expected = F.cross_entropy(few @ weight.detach().float().T, labels[:256], reduction="none")
    expected.sum().backward()
    assert torch.allclose(losses[:256].float(), expected, rtol=0.02, atol=0.02)
    error = (states.grad[:256].float() - few.grad).norm() / few.grad.norm()
    assert error < 0.02 and int(sampled.min()) >= 0 and int(sampled.max()) < entries


if __name__ == "__main__":  # without what a device draws
    quiet(pytest.MonkeyPatch())
    sys.exit(train.main(sys.argv[1:]))
