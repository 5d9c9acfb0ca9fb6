"""Soft targets on disk: what has changed since they were written is named, never read."""

import json
from dataclasses import replace

import numpy as np
import pytest

from road_ds.common.errors import RoadError
from road_ds.common.sealed import with_seal
from road_ds.distillation import soft_targets
from road_ds.distillation.soft_targets import Origin, SoftTargets, begin, finish, flaw, has_shard, write_shard

ORIGIN = Origin("places", "teacher", "rows", 40, "tokenizer", {"max_length": 24}, ["yes", "no"], "float16")


STATES = replace(ORIGIN, vectors=[3, 5])  # of three layers, five wide


def written(place, origin=ORIGIN):
    """Soft targets of 40 features, of unequal length, and what was written."""
    generator = np.random.default_rng(0)
    logits = [generator.normal(size=generator.integers(1, 9)) for _ in range(origin.features)]
    vectors = [generator.normal(size=(3, 5)) for _ in range(origin.features)] if origin.vectors else []
    begin(place, origin)
    write_shard(place, 0, logits, generator.integers(0, 2, origin.features), origin, vectors)
    finish(place, origin, "teacher")
    return logits, vectors


@pytest.fixture
def folder(tmp_path):
    """Soft targets with states beside the logits."""
    written(tmp_path / "targets", STATES)
    return tmp_path / "targets"


def everything(folder) -> list:
    """All that training and `teach` read."""
    source = SoftTargets(folder, STATES, "teacher")
    rows = [(source[i].tolist(), source.vectors(i).tolist()) for i in range(ORIGIN.features)]
    return [source.teacher, source.scores().tolist(), rows]


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
            SoftTargets(folder, STATES, "teacher")
        assert file in flaw(folder, STATES), "teach sees what training refuses"
    (folder / file).write_bytes(whole)
    assert flaw(folder, STATES) == ""


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


def test_states_lie_beside_the_logits(tmp_path):
    """In float16, layer by layer; whoever wants logits alone reads the same."""
    logits, vectors = written(tmp_path, STATES)
    for origin in (STATES, ORIGIN):
        source = SoftTargets(tmp_path, origin, "teacher")
        assert source.shape == [3, 5] and flaw(tmp_path, origin) == ""
        for i in range(ORIGIN.features):
            assert np.array_equal(source[i], logits[i].astype(np.float16))
            assert np.array_equal(source.vectors(i), vectors[i].astype(np.float16))


def test_logits_alone_are_read_where_they_are_enough(tmp_path):
    """As soft targets were written until there were states: without the word in their manifests."""
    logits, _ = written(tmp_path)
    begun, manifest = (json.loads((tmp_path / name).read_text()) for name in ("begun.json", "manifest.json"))
    del begun["vectors"], manifest["origin"]["vectors"], manifest["seal"]
    (tmp_path / "begun.json").write_text(json.dumps(begun))
    (tmp_path / "manifest.json").write_bytes(with_seal(manifest))
    source = SoftTargets(tmp_path, ORIGIN, "teacher")
    assert np.array_equal(source[7], logits[7].astype(np.float16)) and flaw(tmp_path, ORIGIN) == ""
    assert begin(tmp_path, ORIGIN) == [], "what was begun then goes on"
    with pytest.raises(RoadError, match=r"are logits alone, and road\.distill\.layers compares states; run `python -m"):
        SoftTargets(tmp_path, STATES, "teacher")
    assert "made from something else" in flaw(tmp_path, STATES)
    assert begin(tmp_path, STATES) == ["choice of states beside the logits"]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (1e6, 'vectors of feature 1 are too large for float16: set road.distill.source to "online"'),
        (np.nan, "not finite"),
    ],
)
def test_states_that_are_not_finite_are_not_stored(tmp_path, value, said):
    origin = replace(STATES, features=2)
    begin(tmp_path, origin)
    with pytest.raises(RoadError, match=said):
        write_shard(tmp_path, 0, [np.ones(2)] * 2, np.ones(2), origin, [np.ones((3, 5)), np.full((3, 5), value)])
    assert not list(tmp_path.glob("*.arrow"))
