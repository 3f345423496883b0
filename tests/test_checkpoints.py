import hashlib
import json
import os

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from wm_lib import checkpoints
from wm_lib.errors import StageError

DTYPES = "? u1 i1 <u2 <i2 <u4 <i4 <u8 <i8 <f2 <f4 <f8 >i4 >f8".split()
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)
NAMES = st.text(min_size=1, max_size=10).filter(lambda name: name != "__metadata__")
TENSORS = {"a": np.arange(600.0).reshape(20, 30), "b": np.array([True, False, True])}


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "vae.safetensors"
    checkpoints.save(path, TENSORS, {"z_dim": 32})
    return path


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype.newbyteorder("="), name
        assert found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


@given(st.dictionaries(NAMES, ARRAYS, max_size=4))
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_round_trip(tmp_path, tensors):
    path = tmp_path / "x.safetensors"
    checkpoints.save(path, tensors, {})
    assert_same(checkpoints.load(path)[0], tensors)
    assert_same(checkpoints.open_mmap(path), tensors)
    # An independent reader of the format sees the same.
    assert_same(safetensors.numpy.load(path.read_bytes()), tensors)


def test_arrays_that_are_not_in_c_order(tmp_path):
    base = np.arange(24).reshape(2, 3, 4)
    tensors = {"fortran": np.asfortranarray(base), "turned": base.T, "stepped": base[:, ::-2]}
    checkpoints.save(tmp_path / "x.safetensors", tensors, {})
    assert_same(checkpoints.load(tmp_path / "x.safetensors")[0], tensors)


def test_map_is_lazy_and_read_only(saved):
    found = checkpoints.open_mmap(saved)
    assert isinstance(found["a"], np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        found["a"][0] = 1


@pytest.mark.parametrize("value", [0.1, -1e4, 65504.0, 1e-7, 5e-9, 0.0])
def test_half_precision_is_the_nearest_and_done_twice_changes_nothing(value):
    found = checkpoints.half({"w": np.array([value], np.float32), "n": np.array([70_000]), "b": np.array(True)})
    assert found["w"].dtype == np.float16 and found["n"].dtype.kind == "i" and found["b"].dtype == bool
    assert found["n"][0] == 70_000
    every = np.arange(2**16, dtype=np.uint16).view(np.float16)
    every = every[np.isfinite(every)].astype(np.float64)
    exact = np.float64(np.float32(value))
    assert abs(np.float64(found["w"][0]) - exact) == np.abs(every - exact).min()
    assert (checkpoints.half(found)["w"] == found["w"]).all()


@pytest.mark.parametrize("value", [70_000.0, -1e30, np.inf, np.nan])
def test_what_half_precision_cannot_hold_is_refused_by_name(value):
    with pytest.raises(StageError, match="decoder.bias holds NaN or a number too large for half precision"):
        checkpoints.half({"ok": np.ones(2), "decoder.bias": np.array([1.0, value], np.float32)})


def test_sidecar(tmp_path):
    path = tmp_path / "new" / "folder" / "m.safetensors"
    meta = {
        "beta": np.float32(0.5),
        "steps": np.int64(3),
        "sizes": np.arange(2),
        "from": tmp_path,
        "name": "Übung",
    }
    digest = checkpoints.save(path, TENSORS, meta)
    expected = {"beta": 0.5, "steps": 3, "sizes": [0, 1], "from": tmp_path.as_posix(), "name": "Übung"}
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest() == checkpoints.sha256_file(path)
    found = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    assert found == {**expected, "schema": 1, "sha256": digest}
    assert checkpoints.read_meta(path) == found == checkpoints.load(path)[1] == checkpoints.verify(path)
    assert sorted(p.name for p in path.parent.iterdir()) == ["m.json", "m.safetensors"]


def test_saving_again_with_loaded_meta_does_not_keep_the_old_hash(saved):
    tensors, meta = checkpoints.load(saved)
    digest = checkpoints.save(saved, {"a": tensors["a"] + 1}, meta)
    assert digest != meta["sha256"]
    assert checkpoints.load(saved)[1] == {**meta, "sha256": digest}


def test_truncated_file_is_refused(saved):
    whole = saved.read_bytes()
    for size in (0, 4, 8, 60, len(whole) - 1):
        saved.write_bytes(whole[:size])
        with pytest.raises(StageError, match=r"vae\.safetensors is damaged.*delete it"):
            checkpoints.load(saved)
        with pytest.raises(StageError, match=r"vae\.safetensors is damaged.*delete it"):
            checkpoints.open_mmap(saved)


def test_longer_file_is_refused(saved):
    saved.write_bytes(saved.read_bytes() + b"\0")
    with pytest.raises(StageError, match="sha256"):
        checkpoints.load(saved)
    with pytest.raises(StageError, match="bytes instead of"):
        checkpoints.open_mmap(saved)


def test_any_flipped_byte_is_refused(saved):
    whole = saved.read_bytes()
    for position in np.linspace(0, len(whole) - 1, 40).astype(int):
        saved.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StageError, match="sha256"):
            checkpoints.load(saved)


@pytest.mark.parametrize("header", [b"[]", b"nonsense", b'{"a": 3}', b'{"a": {"dtype": "F32"}}'])
def test_other_formats_are_refused_by_the_map(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(StageError, match=r"x\.safetensors is damaged"):
        checkpoints.open_mmap(path)


def test_missing_file(tmp_path):
    for read in (checkpoints.load, checkpoints.read_meta, checkpoints.open_mmap, checkpoints.read_json):
        with pytest.raises(StageError, match=r"none\.safetensors is missing"):
            read(tmp_path / "none.safetensors")


def test_missing_sidecar_is_refused(saved):
    saved.with_suffix(".json").unlink()
    with pytest.raises(StageError, match=r"vae\.safetensors has no sidecar vae\.json"):
        checkpoints.load(saved)


def test_sidecar_of_another_file_is_refused(saved, tmp_path):
    other = tmp_path / "other.safetensors"
    checkpoints.save(other, {"a": np.zeros(3)}, {"z_dim": 16})
    os.replace(other.with_suffix(".json"), saved.with_suffix(".json"))
    with pytest.raises(StageError, match=r"vae\.safetensors is damaged: its sha256"):
        checkpoints.load(saved)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema": 1}', '{"schema": 2, "sha256": "0"}', "\x00"])
def test_damaged_sidecar_is_refused(saved, text):
    saved.with_suffix(".json").write_text(text)
    with pytest.raises(StageError, match=r"vae\.json"):
        checkpoints.load(saved)


@pytest.mark.parametrize("first_time", [True, False])
def test_crash_between_tensors_and_sidecar(saved, monkeypatch, first_time):
    if first_time:
        saved.unlink()
        saved.with_suffix(".json").unlink()

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoints, "write_json", crash)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(saved, {"a": np.ones(3)}, {})
    monkeypatch.undo()
    with pytest.raises(StageError, match=r"vae\.safetensors"):
        checkpoints.load(saved)
    checkpoints.save(saved, {"a": np.ones(3)}, {})  # the re-run
    assert_same(checkpoints.load(saved)[0], {"a": np.ones(3)})


def test_crash_while_writing_tensors_leaves_the_old_artefact(saved, monkeypatch):
    before = {path.name: path.read_bytes() for path in saved.parent.iterdir()}

    def half(_, path):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", half)
    with pytest.raises(OSError, match="No space"):
        checkpoints.save(saved, {"a": np.ones(3)}, {})
    assert {path.name: path.read_bytes() for path in saved.parent.iterdir()} == before


@pytest.mark.parametrize("meta", [{"x": float("nan")}, {"x": np.float32("inf")}, {"x": object()}])
def test_meta_that_json_cannot_hold_touches_nothing(saved, meta):
    before = saved.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        checkpoints.save(saved, {"a": np.ones(3)}, meta)
    assert saved.read_bytes() == before
    assert checkpoints.load(saved)[1]["z_dim"] == 32


def test_name_has_to_say_what_it_is(tmp_path):
    with pytest.raises(ValueError, match=r"\.safetensors"):
        checkpoints.save(tmp_path / "x.npz", TENSORS, {})


def test_json_round_trip_and_failure_keep_the_old_file(tmp_path):
    path = tmp_path / "a" / "report.json"
    checkpoints.write_json(path, {"score": [1.5, None, "ü"]})
    assert checkpoints.read_json(path) == {"score": [1.5, None, "ü"]}
    with pytest.raises(ValueError):
        checkpoints.write_json(path, {"score": float("nan")})
    assert checkpoints.read_json(path) == {"score": [1.5, None, "ü"]}
    path.write_text('{"score": ')
    with pytest.raises(StageError, match=r"report\.json is damaged"):
        checkpoints.read_json(path)
