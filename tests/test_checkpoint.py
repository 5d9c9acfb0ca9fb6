"""What a checkpoint may hold, whose it is, and that its writing fails on all ranks or on none."""

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from runs import tiny_config
from safetensors.torch import load_file
from test_resume import ALONE, FakeEngine

from road_ds import train
from road_ds.common import sealed
from road_ds.common.errors import RankError, RoadError
from road_ds.engine import checkpoint, start
from road_ds.engine.checkpoint import Checkpoint, committed, newest, save, without_code
from road_ds.engine.run_folder import RunFolder
from road_ds.engine.weights import export_checkpoint


def saved(root: Path, *steps: int, run: str = "a", keep: int = 9, config=None) -> None:
    for step in steps:
        save(FakeEngine(), ALONE, root, run=run, step=step, config=config or {}, keep=keep)


# ---------------------------------------------------------------------------------------------------- whose it is


@pytest.mark.parametrize("steps", [(8,), (2,)])
def test_a_checkpoint_of_another_run_is_neither_resumed_nor_pruned(tmp_path, steps):
    """Whether it is newer or older than the run's own."""
    saved(tmp_path, *steps, run="b")
    saved(tmp_path, 4)
    with pytest.raises(
        RoadError, match=rf"step-0000000{steps[0]}: is a checkpoint of another run \(b, .* is a\): move it"
    ):
        newest(tmp_path, "a")
    assert len(committed(tmp_path)) == 2


def test_a_damaged_step_or_config_is_passed_over(tmp_path, capsys):
    for old, new in (('"step": 4', '"step": 6'), ('"seed": 1', '"seed": 3')):
        root = tmp_path / new[-1]
        saved(root, 2, 4, config={"seed": 1})
        manifest = root / "step-00000004" / "manifest.json"
        manifest.write_text(manifest.read_text().replace(old, new))
        assert newest(root, "a").step == 2
        assert "step-00000004 is damaged" in capsys.readouterr().err


def test_export_looks_at_the_manifest_too(tmp_path):
    saved(tmp_path / "checkpoints", 2, config={"road": {"tasks": {"a": {"labels": ["good"]}}}})
    manifest = tmp_path / "checkpoints" / "step-00000002" / "manifest.json"
    manifest.write_text(manifest.read_text().replace("good", "goof"))
    with pytest.raises(RoadError, match=r"manifest\.json: has changed since it was saved"):
        export_checkpoint(manifest.parent, tmp_path / "out")
    with pytest.raises(RoadError, match="no checkpoint to resume from"):
        export_checkpoint(tmp_path, tmp_path / "out")


def test_a_longer_run_goes_on_from_the_model(tmp_path):
    folder = RunFolder(tmp_path)
    folder.begin({})
    saved(tmp_path / "checkpoints", 6, run=folder.run, config={"road": {"steps": 6}})
    for name, how in (
        ("", rf"python -m road_ds export {tmp_path}, then road\.model={tmp_path}"),
        ("model", "model: road"),
    ):
        if name:
            (tmp_path / name / "qa").mkdir(parents=True)
            (tmp_path / name / "qa" / "config.json").write_text("{}")
        with pytest.raises(
            RoadError, match=rf"start another run with road\.output that goes on from this one's .*{how}"
        ):
            train.resumable(folder, {"road": {"steps": 20}})
    with pytest.raises(RoadError, match=r"another run with road\.output$"):
        train.resumable(folder, {"road": {"steps": 6, "seed": 2}})


# ----------------------------------------------------------------------------------------- whose optimizer's layout


@pytest.mark.parametrize(("stage", "decay"), [(0, 0.8), (1, 0.8), (0, 1.0), (1, 1.0)])
def test_a_group_for_each_rate_is_refused_and_two_are_read(stage, decay, config_file, tmp_path, monkeypatch, capsys):
    """What was saved before all rates lay in two groups: torch's own optimizer, no `groups` in the manifest."""
    config = tiny_config(steps=4, save_every=2, layer_lr_decay=decay) | {"zero_optimization": {"stage": stage}}
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    arguments = ["--deepspeed_config", str(config_file(config))]
    write = checkpoint.write_manifest
    with monkeypatch.context() as before:
        before.setattr(start, "takes_pieces", lambda ds: False)
        before.setattr(
            checkpoint, "write_manifest", lambda at, facts: write(at, {k: v for k, v in facts.items() if k != "groups"})
        )
        assert train.main(arguments) == 0
    expected = load_file(tmp_path / "run" / "model" / "qa" / "model.safetensors")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    capsys.readouterr()
    if decay < 1:
        assert train.main([*arguments, "--resume"]) == 2
        error = capsys.readouterr().err
        assert "its optimizer has a parameter group for each learning rate, this version's has 2: finish" in error
        return
    assert train.main([*arguments, "--resume"]) == 0
    found = load_file(tmp_path / "run" / "model" / "qa" / "model.safetensors")
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected.items())


def test_zero_3_on_one_process_is_trained_as_zero_2(config_file, tmp_path, monkeypatch, capsys):
    """To the bit, and said; a checkpoint of the time when it was not is refused in a sentence that helps."""
    path = str(config_file(tiny_config(steps=4, save_every=2)))
    arguments = {
        stage: ["--deepspeed_config", path, "--set", f"zero_optimization.stage={stage}", "--set", f"road.output={tmp_path / str(stage)}"]
        for stage in (2, 3)
    }  # fmt: skip
    for stage, given in arguments.items():
        assert train.main(given) == 0
        said = "ZeRO 2, not 3: one process has nobody to share weights with"
        assert (said in capsys.readouterr().out) == (stage == 3)
        assert newest(tmp_path / str(stage) / "checkpoints").manifest.stage == 2
    shutil.rmtree(tmp_path / "3" / "checkpoints" / "step-00000004")
    status = tmp_path / "3" / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"status": "preempted"}))
    assert train.main([*arguments[3], "--resume"]) == 0 and "resumed from step-00000002" in capsys.readouterr().out
    two, three = (load_file(tmp_path / str(stage) / "model" / "qa" / "model.safetensors") for stage in (2, 3))
    assert all(torch.equal(two[name], value) for name, value in three.items())

    with monkeypatch.context() as before:
        before.setattr(start, "fit_stage", lambda ds, processes: ds)
        assert train.main([*arguments[3], "--overwrite"]) == 0
    shutil.rmtree(tmp_path / "3" / "checkpoints" / "step-00000004")
    capsys.readouterr()
    assert train.main([*arguments[3], "--resume"]) == 2
    error = capsys.readouterr().err
    assert (
        "was saved under ZeRO stage 3, this run has stage 2: start a new run from its weights (python -m road_ds export"
        in error
    )
    assert export_checkpoint(tmp_path / "3", tmp_path / "exported")


def test_another_number_of_groups_is_refused(tmp_path):
    saved(tmp_path, 2)
    with pytest.raises(RoadError, match=r"its optimizer has 2 parameter groups, this version's has 8: finish the run"):
        checkpoint.refuse_other_groups(newest(tmp_path), 8)
    checkpoint.refuse_other_groups(newest(tmp_path), 2)


# ------------------------------------------------------------------------------------------------------- full disk


class Two:
    """Rank 0 of two; the other rank's faults are given, one for each part of a save."""

    rank, world_size = 0, 1

    def __init__(self, *faults: str | None):
        self.faults = [*faults]

    def gather(self, value):
        return [value, self.faults.pop(0)]


@pytest.mark.parametrize("part", range(3))
def test_a_fault_of_another_rank_is_one_here(tmp_path, part):
    saved(tmp_path, 2)
    faults = [None] * part + ["No space left"]
    with pytest.raises(OSError, match="could not be written: No space left"):
        save(FakeEngine(), Two(*faults), tmp_path, run="a", step=4, config={}, keep=1)
    assert not list(tmp_path.glob(".staged*")) and newest(tmp_path, "a").step in (2, 4)


@pytest.mark.parametrize("call", ["mkdir", "write_whole", "commit", "save_file"])
def test_no_space_in_any_part_is_told_to_all_and_leaves_nothing(tmp_path, monkeypatch, call):
    """Files or inodes, ours or the engine's: a rank that raised alone would leave the others waiting."""

    def no_space(*_, **__):
        raise OSError(28, "No space left on device")

    saved(tmp_path, 2)
    told = []
    ranks = SimpleNamespace(rank=0, world_size=1, gather=lambda value: told.append(value) or [value])
    with monkeypatch.context() as full:
        full.setattr({"mkdir": Path, "write_whole": sealed}.get(call, checkpoint), call, no_space)
        with pytest.raises(OSError, match=r"could not be written: .*No space left on device"):
            save(FakeEngine(), ranks, tmp_path, run="a", step=4, config={}, keep=1)
    assert told[-1] and [p.name for p in tmp_path.iterdir()] == ["step-00000002"]


def test_the_engine_copies_no_scripts(tmp_path, monkeypatch):
    """It would on rank 0 alone, where a full disk raises; and a checkpoint holds no programs."""
    assert hasattr(DeepSpeedEngine, "_copy_recovery_script")
    monkeypatch.setattr(FakeEngine, "_copy_recovery_script", lambda *_: pytest.fail("was called"), raising=False)
    whole = FakeEngine.save_checkpoint

    def with_scripts(self, folder, tag, save_latest):
        whole(self, folder, tag, save_latest)
        self._copy_recovery_script(folder)

    monkeypatch.setattr(FakeEngine, "save_checkpoint", with_scripts)
    engine = FakeEngine()
    save(engine, ALONE, tmp_path, run="a", step=2, config={}, keep=1)
    assert "_copy_recovery_script" not in vars(engine)


# ------------------------------------------------------------------------------------------------------------ code


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("it-ran",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_checkpoint_does_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    found = Checkpoint(tmp_path, SimpleNamespace())
    torch.save({"module": {}, "more": Code()}, "a.pt", _use_new_zipfile_serialization=zipped)
    message = r"holds \S+mkdir, which is no part of a checkpoint and could run code"
    with pytest.raises(RankError, match=message), without_code(found):
        torch.load("a.pt", weights_only=False)
    assert not Path("it-ran").exists()
    torch.load("a.pt", weights_only=False)
    assert Path("it-ran").exists(), "the control: elsewhere it runs"


def test_what_deepspeed_saves_is_loaded(tmp_path):
    scaler = DynamicLossScaler(4.0, 10, 1.0, 2, False)
    state = {"scaler": [scaler, LossScaler(1.0)], "stage": ZeroStageEnum.weights, "at": fragment_address(1, 2)}
    torch.save(state, tmp_path / "a.pt")
    with without_code(Checkpoint(tmp_path, SimpleNamespace())):
        found = torch.load(tmp_path / "a.pt", weights_only=False)
    assert found["scaler"][0].cur_scale == 4.0 and found["stage"] is ZeroStageEnum.weights
    assert found["at"] == fragment_address(1, 2) and json.dumps(found["scaler"][1].cur_scale) == "1.0"
