"""Nothing committed is lost: killed and resumed runs end with the bits of an unbroken one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
from forked import run_forked
from runs import ROOT, environment, free_port, records, tiny_config
from safetensors.torch import load_file

from road_ds.common.errors import RoadError
from road_ds.common.ranks import Ranks
from road_ds.engine import checkpoint

STEPS = 8
HEADS = ("qa", "inference", "paraphrase")


def resumable_config(stage: int) -> dict:
    config = tiny_config(steps=STEPS, dropout=0.1, save_every=2, log_every=3, schedule="linear", warmup=0.1)
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    config["road"]["layer_lr_decay"] = 0.8
    config["zero_optimization"] = {"stage": stage}
    return config


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{head}/{name}": value
        for head in HEADS
        for name, value in load_file(folder / "model" / head / "model.safetensors").items()
    }


def same(a: Path, b: Path) -> bool:
    left, right = weights(a), weights(b)
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in records(folder) if "loss" in line]


def runs(*shapes: tuple[int, int]):
    """The unbroken runs that a test starts from, by ZeRO stage and ranks."""
    ids = [f"ZeRO {stage} on {ranks}" for stage, ranks in shapes]
    return pytest.mark.parametrize("unbroken", shapes, ids=ids, indirect=True, scope="module")


ONE, TWO = (0, 1), (2, 2)


@pytest.fixture(scope="module")
def unbroken(request, tmp_path_factory, cache):
    """A run that was never killed: its ranks, its config file, its folder."""
    stage, ranks = request.param
    folder = tmp_path_factory.mktemp("unbroken")
    config = resumable_config(stage)
    config["road"] |= {"cache": str(cache), "output": str(folder / "run")}
    path = folder / "run.json"
    path.write_text(json.dumps(config))
    result = start("none", 0, 0, path, ranks)
    assert result.returncode == 0, result.stderr[-3000:]
    assert [p.name for p in checkpoint.committed(folder / "run" / "checkpoints")] == ["step-00000008", "step-00000006"]
    assert not list((folder / "run" / "checkpoints").rglob("*.py")), "DeepSpeed's scripts"
    return ranks, path, folder / "run"


def start(point: str, step: int, rank: int, config: Path, ranks: int, *arguments: str) -> subprocess.CompletedProcess:
    script = [ROOT / "tests" / "broken_run.py", point, str(step), str(rank), "--deepspeed_config", config, *arguments]
    return run_forked(*script, ranks=ranks)


@runs(ONE, TWO)
def test_killed_again_and_again_it_ends_with_the_same_bits(unbroken, tmp_path):
    ranks, config, expected = unbroken
    output = ("--set", f"road.output={tmp_path / 'run'}")
    last = ranks - 1
    for point, step, rank, newest in (
        ("backward", 3, last, "step-00000002"),  # inside a step
        ("write", 4, last, "step-00000002"),  # inside a checkpoint, a rank's part missing
        ("manifest", 6, 0, "step-00000004"),  # inside a checkpoint, all parts there
        ("prune", 8, 0, "step-00000008"),  # behind the commit
    ):
        resume = ("--resume",) if (tmp_path / "run").exists() else ()
        result = start(point, step, rank, config, ranks, *output, *resume)
        assert result.returncode not in (0, 2), f"{point}: was not killed\n{result.stderr[-2000:]}"
        assert checkpoint.newest(tmp_path / "run" / "checkpoints").folder.name == newest, point
    result = start("none", 0, 0, config, ranks, *output, "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    assert same(tmp_path / "run", expected)
    assert losses(tmp_path / "run") == losses(expected), "metrics.jsonl tells one unbroken story"
    assert json.loads((tmp_path / "run" / "status.json").read_text())["status"] == "finished"
    assert len(checkpoint.committed(tmp_path / "run" / "checkpoints")) == 2
    assert not list((tmp_path / "run" / "checkpoints").glob(".staged-*"))


def copied(run: Path, target: Path, newest: int) -> Path:
    """A run folder as it was after checkpoint `newest`."""
    shutil.copytree(run, target)
    for folder in checkpoint.committed(target / "checkpoints"):
        if folder.name > f"step-{newest:08d}":
            shutil.rmtree(folder)
    return target


@runs(ONE)
def test_a_resume_that_forgets_the_random_states_is_seen(unbroken, tmp_path):
    """The control: were dropout's state not restored, the comparison above would fail."""
    ranks, config, expected = unbroken
    run = copied(expected, tmp_path / "run", 6)
    result = start("forget", 0, 0, config, ranks, "--set", f"road.output={run}", "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    assert not same(run, expected)


@runs(ONE)
def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_used(unbroken, tmp_path):
    _, config, expected = unbroken
    run = shutil.copytree(expected, tmp_path / "run")
    newest = run / "checkpoints" / "step-00000008"
    shard = newest / "engine" / "mp_rank_00_model_states.pt"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    result = run_forked("road_ds/train.py", "--deepspeed_config", config, "--set", f"road.output={run}", "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step-00000008 is damaged" in result.stderr and "mp_rank_00_model_states.pt" in result.stderr
    assert "resumed from step-00000006" in result.stdout
    assert same(run, expected)


@runs(ONE, TWO)
def test_each_file_of_a_checkpoint_truncated_deleted_or_flipped(unbroken, tmp_path, capsys):
    _, _, expected = unbroken
    for number, path in enumerate(sorted((expected / "checkpoints" / "step-00000008").rglob("*"))):
        if path.is_dir():
            continue
        for damage in ("truncated", "deleted", "flipped"):
            root = tmp_path / f"{number}-{damage}"
            shutil.copytree(expected / "checkpoints", root)
            victim = root / "step-00000008" / path.relative_to(expected / "checkpoints" / "step-00000008")
            data = bytearray(victim.read_bytes())
            if damage == "deleted":
                victim.unlink()
            elif damage == "truncated":
                victim.write_bytes(data[:-1])
            else:
                data[0] ^= 1
                victim.write_bytes(data)
            assert checkpoint.newest(root).step == 6, f"{path.name} {damage}"
            assert victim.name in capsys.readouterr().err
            shutil.rmtree(root)


@runs(ONE)
def test_a_strange_file_in_a_checkpoint_is_refused(unbroken, tmp_path):
    """A file that the manifest does not know could be loaded."""
    _, _, expected = unbroken
    folder = shutil.copytree(expected / "checkpoints" / "step-00000008", tmp_path / "step-00000008")
    (folder / "engine" / "extra.pt").write_bytes(b"x")
    with pytest.raises(RoadError, match=r"extra\.pt: is not in the manifest"):
        checkpoint.verify(folder)


@runs(ONE)
def test_a_finished_run_that_is_resumed_tells_its_end_once(unbroken, tmp_path):
    """It only evaluates and exports again; its one checkpoint at the end is not written anew."""
    _, config, expected = unbroken
    run = shutil.copytree(expected, tmp_path / "run")
    before = (run / "checkpoints" / "step-00000008" / "manifest.json").stat().st_mtime_ns
    result = run_forked("road_ds/train.py", "--deepspeed_config", config, "--set", f"road.output={run}", "--resume")
    assert result.returncode == 0, result.stderr[-3000:]
    assert records(run) == records(expected)
    assert (run / "checkpoints" / "step-00000008" / "manifest.json").stat().st_mtime_ns == before


def test_all_checkpoints_damaged_is_an_error_not_a_fresh_start(tmp_path):
    (tmp_path / "step-00000002").mkdir()
    with pytest.raises(RoadError, match=r"no checkpoint to resume from \(1 found, all damaged\)"):
        checkpoint.newest(tmp_path)


@runs(ONE, TWO)
def test_other_world_size_and_stage_say_what_to_do(unbroken, tmp_path):
    ranks, config, expected = unbroken
    run = copied(expected, tmp_path / "run", 6)
    stage = 2 if ranks == 2 else 1
    arguments = ["--set", f"road.output={run}", "--set", f"zero_optimization.stage={stage}", "--resume"]
    result = run_forked("road_ds/train.py", "--deepspeed_config", config, *arguments)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    if ranks == 2:
        assert "ZeRO 2 splits the optimizer over 2 processes, this run has 1: resume on 2, or start" in result.stderr
    else:
        assert "zero_optimization.stage" in result.stderr and "saved" in result.stderr and "now" in result.stderr


@pytest.mark.parametrize(("group", "ranks"), [(False, 2), (True, 1)], ids=["command", "group"])
def test_sigterm_to_the_launcher_saves_and_leaves_no_orphans(config_file, tmp_path, group, ranks):
    """The `deepspeed` command dies at once; its ranks notice, agree, save and end. So they do where a scheduler asks all."""
    run, config = tmp_path / "run", config_file(resumable_config(2))
    deepspeed = str(Path(sys.executable).parent / "deepspeed")
    arguments = ["--set", "road.steps=100000", "--set", "road.log_every=1"]
    process = subprocess.Popen(
        [deepspeed, "--num_gpus", str(ranks), "--master_port", str(free_port()), "road_ds/train.py", "--deepspeed_config", config, *arguments],
        cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(records(run)) >= 2, 120)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 1 + ranks
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    process.wait(30)
    _, alive = psutil.wait_procs(children, timeout=60)
    for orphan in alive:
        orphan.kill()
    assert not alive
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "preempted" and status["reason"].startswith("stopped")
    assert checkpoint.newest(run / "checkpoints").step == status["step"] >= 2


def wait_for(condition, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.1)


@runs(TWO)
def test_a_full_disk_on_one_rank_costs_one_checkpoint(unbroken, tmp_path):
    """The other rank must not wait in a barrier for ever; the run goes on and ends with the same bits."""
    ranks, config, expected = unbroken
    result = start("full", 4, 1, config, ranks, "--set", f"road.output={tmp_path / 'run'}", "--set", "road.keep=9")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "step 4: the checkpoint could not be written" in result.stderr
    saved = [path.name for path in checkpoint.committed(tmp_path / "run" / "checkpoints")]
    assert saved == ["step-00000008", "step-00000006", "step-00000002"]
    assert same(tmp_path / "run", expected)


def test_damaged_newer_checkpoints_are_set_aside(tmp_path):
    """Else pruning would keep the damaged one as the newest and remove the good ones."""
    for step in (2, 4, 6):
        checkpoint.save(FakeEngine(), ALONE, tmp_path, run="a", step=step, config={}, keep=3)
    (tmp_path / "step-00000006" / "engine" / "weights.pt").write_bytes(b"")
    checkpoint.set_aside(checkpoint.newest(tmp_path))
    checkpoint.save(FakeEngine(), ALONE, tmp_path, run="a", step=5, config={}, keep=1)
    assert checkpoint.newest(tmp_path).step == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged-step-00000006", "step-00000005"]


class FakeEngine:
    """As much of an engine as a save needs; writes one file, or fails as on a full disk."""

    def __init__(self, fault: Exception | None = None):
        self.fault = fault
        self.checkpoint_engine = self
        self.optimizer = SimpleNamespace(param_groups=[{}, {}])

    def zero_optimization_stage(self) -> int:
        return 0

    def save_checkpoint(self, folder, tag, save_latest):
        (Path(folder) / tag).mkdir()
        self.checkpoint_engine.save(Path(folder) / tag / "weights.pt")

    def save(self, path):
        path.write_bytes(os.urandom(64))
        if self.fault:
            raise self.fault


ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), control=None)


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_a_full_disk_fails_loudly_and_keeps_older_checkpoints(tmp_path, fault):
    checkpoint.save(FakeEngine(), ALONE, tmp_path, run="a", step=2, config={}, keep=1)
    with pytest.raises(OSError, match="could not be written"):
        checkpoint.save(FakeEngine(fault), ALONE, tmp_path, run="a", step=4, config={}, keep=1)
    assert checkpoint.newest(tmp_path).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]


def test_only_the_newest_are_kept_and_a_step_can_be_saved_again(tmp_path):
    for step in (2, 4, 6, 6):
        checkpoint.save(FakeEngine(), ALONE, tmp_path, run="a", step=step, config={}, keep=2)
    assert [path.name for path in checkpoint.committed(tmp_path)] == ["step-00000006", "step-00000004"]


def test_random_states_come_back():
    import random

    import numpy as np

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1)

    random.gauss(0, 1)  # leaves a second value waiting
    state = checkpoint.random_state()
    first = draw()
    assert draw() != first
    checkpoint.restore_random_state(state)
    assert draw() == first
