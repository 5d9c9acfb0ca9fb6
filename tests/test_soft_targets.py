"""Soft targets on disk: what has changed since they were written is named, never read."""

from dataclasses import replace

import numpy as np
import pytest

from road_ds.common.errors import RoadError
from road_ds.distillation import soft_targets
from road_ds.distillation.soft_targets import Origin, SoftTargets, begin, finish, flaw, has_shard, write_shard

ORIGIN = Origin("places", "teacher", "rows", 40, "tokenizer", {"max_length": 24}, ["yes", "no"], "float16")


@pytest.fixture
def folder(tmp_path):
    """Soft targets of 40 features, of unequal length."""
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=generator.integers(1, 9)) for _ in range(ORIGIN.features)]
    begin(tmp_path / "targets", ORIGIN)
    write_shard(tmp_path / "targets", 0, logits, generator.integers(0, 2, ORIGIN.features), ORIGIN)
    finish(tmp_path / "targets", ORIGIN, "teacher")
    return tmp_path / "targets"


def everything(folder) -> list:
    """All that training and `teach` read."""
    source = SoftTargets(folder, ORIGIN, "teacher")
    return [source.teacher, source.scores().tolist(), [source[i].tolist() for i in range(ORIGIN.features)]]


@pytest.mark.parametrize("file", ["00000.arrow", "manifest.json"])
def test_a_flipped_bit_is_named_wherever_it_lies(folder, file):
    """In a logit, in how right the teacher is, in what the targets were made from."""
    generator = np.random.default_rng(1)
    whole = (folder / file).read_bytes()
    for place in generator.integers(len(whole), size=200):
        data = bytearray(whole)
        data[place] ^= 1 << generator.integers(8)
        (folder / file).write_bytes(data)
        with pytest.raises(RoadError, match=rf"{file}: .*; run `python -m road_ds teach"):
            SoftTargets(folder, ORIGIN, "teacher")
        assert file in flaw(folder, ORIGIN), "teach sees what training refuses"
    (folder / file).write_bytes(whole)
    assert flaw(folder, ORIGIN) == ""


def test_a_shard_whose_record_has_changed_is_written_again(folder):
    """The record says what `teach` may keep; with a manifest over it nobody reads it."""
    truth, record = everything(folder), folder / "00000.json"
    whole = record.read_bytes()
    for place in range(len(whole)):
        data = bytearray(whole)
        data[place] ^= 1
        record.write_bytes(data)
        assert not has_shard(folder, 0)
    assert everything(folder) == truth


def test_scores_come_back_over_shards_and_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(soft_targets, "SHARD", soft_targets.CHUNK + 500)
    origin = replace(ORIGIN, features=2 * soft_targets.SHARD + 7)
    scores = np.random.default_rng(0).random(origin.features).astype(np.float32)
    begin(tmp_path / "targets", origin)
    for number, rows in enumerate(soft_targets.shard_rows(origin)):
        write_shard(tmp_path / "targets", number, [np.ones(1)] * len(rows), scores[rows], origin)
    finish(tmp_path / "targets", origin, "teacher")
    assert np.array_equal(SoftTargets(tmp_path / "targets", origin, "teacher").scores(), scores)


def test_a_file_that_cannot_be_read_is_named(folder):
    (folder / "00000.arrow").unlink()
    (folder / "00000.arrow").mkdir()
    with pytest.raises(RoadError, match=r"00000\.arrow: (has|cannot be read)"):
        SoftTargets(folder, ORIGIN, "teacher")
