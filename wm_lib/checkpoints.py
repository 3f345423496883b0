"""Artefacts on disk: arrays in a safetensors file, everything else in a JSON sidecar that knows its sha256.

Both are written under a temporary name and renamed, the sidecar last. A process killed in between leaves a
file that `load` refuses by name; nothing half-written is ever taken for whole. Never pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from wm_lib.errors import StageError

SCHEMA = 1
_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
_AGAIN = "delete it and run the command that made it again"


def save(path: Path, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> str:
    """Write arrays to `path` (.safetensors) and `meta` to the sidecar (.json), each atomically.

    Args:
        path: Where to; parent folders are made.
        tensors: Arrays of booleans, integers, floats or complex64, any shape.
        meta: What JSON can hold; NumPy values and paths are converted. "schema" and "sha256" are filled in.

    Returns:
        The sha256 of the tensor file.

    Raises:
        ValueError: The name does not end in .safetensors, or JSON cannot hold a value of `meta`.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"the name of a checkpoint ends in .safetensors, found {path.name}")
    _to_json(meta)  # fails before the disk is touched
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        arrays = {name: np.asarray(array, order="C") for name, array in tensors.items()}
        safetensors.numpy.save_file(arrays, temporary)
        digest = sha256_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    write_json(_sidecar(path), {**meta, "schema": SCHEMA, "sha256": digest})
    return digest


def load(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Read arrays and sidecar back, after checking that they are whole and belong together.

    Raises:
        StageError: The file or its sidecar is missing or damaged, or they are not of the same `save`.
    """
    path = Path(path)
    meta = verify(path)
    return safetensors.numpy.load_file(path), meta


def half(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with every float rounded to half precision: how V and M are kept, shipped and therefore measured.

    Raises:
        StageError: A value is NaN or beyond the largest half, 65504; names the array.
    """
    halves = {}
    for name, array in tensors.items():
        if np.issubdtype(array.dtype, np.floating):
            with np.errstate(over="ignore"):
                array = np.asarray(array, np.float16)
            if not np.isfinite(array).all():
                raise StageError(f"{name} holds NaN or a number too large for half precision; train again")
        halves[name] = array
    return halves


def verify(path: Path) -> dict[str, Any]:
    """Check a checkpoint without keeping it in memory, and return its sidecar. Raises as `load` does."""
    path = Path(path)
    meta = read_meta(path)
    found = sha256_file(path)
    if found != meta["sha256"]:
        raise StageError(
            f"{path} is damaged: its sha256 is {found[:12]}..., its sidecar {_sidecar(path).name} says "
            f"{str(meta['sha256'])[:12]}...; {_AGAIN}"
        )
    return meta


def read_meta(path: Path) -> dict[str, Any]:
    """The sidecar of a checkpoint: what was saved as `meta`, with "schema" and "sha256".

    Raises:
        StageError: The tensor file or its sidecar is missing, or the sidecar is damaged or of another schema.
    """
    path = Path(path)
    if not path.is_file():
        raise StageError(f"{path} is missing; run the command that makes it")
    sidecar = _sidecar(path)
    if not sidecar.is_file():
        raise StageError(f"{path} has no sidecar {sidecar.name}, its writing was cut short; {_AGAIN}")
    meta = read_json(sidecar)
    if not isinstance(meta, dict) or not isinstance(meta.get("sha256"), str):
        raise StageError(f"{sidecar} is damaged: it holds no sha256; delete {path.name} and run its command again")
    if meta.get("schema") != SCHEMA:
        raise StageError(f"{sidecar} has schema {meta.get('schema')!r}, this version reads {SCHEMA}; {_AGAIN}")
    return meta


def open_mmap(path: Path) -> dict[str, np.ndarray]:
    """Map the arrays of a safetensors file read-only, without reading them.

    Returns:
        Views into one np.memmap. The header and the size of the file are checked, the hash is not.

    Raises:
        StageError: The file is missing, cut off or not in the safetensors format.
    """
    path = Path(path)
    if not path.is_file():
        raise StageError(f"{path} is missing; run the command that makes it")
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= size - 8:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        start = 8 + length
        expected = start + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != expected:
            raise ValueError(f"it has {size} bytes instead of {expected}")
        whole = np.memmap(path, dtype=np.uint8, mode="r")
        arrays = {}
        for name, entry in header.items():
            low, high = entry["data_offsets"]
            arrays[name] = whole[start + low : start + high].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return arrays
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise StageError(f"{path} is damaged: {error}; {_AGAIN}") from error


def sha256_file(path: Path) -> str:
    """The sha256 of a file in hexadecimal, read in pieces."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, obj: Any) -> None:
    """Write JSON atomically, indented, in UTF-8. NumPy scalars and arrays and paths are converted.

    Raises:
        ValueError: JSON cannot hold a value (NaN and infinity included).
    """
    path = Path(path)
    text = _to_json(obj)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        temporary.write_text(text + "\n", encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StageError: It is missing or damaged.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing; run the command that makes it") from error
    except (OSError, ValueError) as error:
        raise StageError(f"{path} is damaged: {error}; {_AGAIN}") from error


def _sidecar(path: Path) -> Path:
    return path.with_suffix(".json")


def _temporary(path: Path) -> Path:
    # A fixed name: what a killed process leaves behind, the next one overwrites.
    return path.with_name(path.name + ".tmp")


def _to_json(obj: Any) -> str:
    try:
        return json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False, default=_plain)
    except TypeError as error:
        raise ValueError(f"JSON cannot hold this: {error}") from error


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return value.as_posix()
    raise TypeError(f"{type(value).__name__} {value!r}")
