"""Files of tensors: as they were written, whole, or refused."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.numpy import save_file

from distqtrl.errors import UserError
from distqtrl.files import tensors as tensorfile
from distqtrl.files.replace import replace

ABOUT = {"format": "test 1", "nested": {"é\n": [1, 2.5, None, True]}}
TENSORS = {
    "float32": np.float32([[1, np.nan], [-0.0, np.inf]]),
    "float64": np.array([0.1, 1e-310]),
    "int64": np.array([[-(2**63)]]),
    "bool": np.array([True, False]),
    "uint8": np.arange(4, dtype=np.uint8),
    "empty": np.zeros((0, 3)),
    "transposed": np.arange(6).reshape(2, 3).T,
}


def test_round_trip_is_bitwise(tmp_path):
    tensorfile.write(tmp_path / "f", ABOUT, TENSORS)
    about, tensors = tensorfile.read(tmp_path / "f", "test 1", "remedy")
    assert about == ABOUT
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
        assert tensors[name].tobytes() == tensor.tobytes()
    assert [f.name for f in tmp_path.iterdir()] == ["f"]


def test_equal_content_is_equal_bytes(tmp_path):
    for name in "abcdefgh":
        tensorfile.write(tmp_path / name, ABOUT, TENSORS)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_a_file_is_replaced(tmp_path):
    replace(tmp_path / "f", b"a longer first content")
    replace(tmp_path / "f", b"second")
    assert (tmp_path / "f").read_bytes() == b"second"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
@pytest.mark.parametrize("older", [b"older content", None])
def test_a_full_disk_changes_nothing(tmp_path, older):
    path = tmp_path / "f"
    if older is not None:
        path.write_bytes(older)
    (tmp_path / "f.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"No space left on device: .*f'"):
        tensorfile.write(path, ABOUT, TENSORS)
    assert [f.read_bytes() for f in tmp_path.iterdir()] == ([] if older is None else [older])


def test_a_missing_folder_is_an_oserror_that_names_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/f'"):
        tensorfile.write(tmp_path / "nowhere" / "f", ABOUT, TENSORS)


@pytest.mark.parametrize("change", ["value", "name", "shape", "dtype", "missing", "about"])
def test_what_was_changed_with_other_tools_is_refused(tmp_path, change):
    tensorfile.write(tmp_path / "f", ABOUT, {"a": np.arange(4.0), "b": np.zeros(1)})
    with safe_open(tmp_path / "f", framework="numpy") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in ("a", "b")}
    if change == "about":
        metadata["distqtrl"] = metadata["distqtrl"].replace("test 1", "test 2")
    elif change == "missing":
        del tensors["b"]
    elif change == "name":
        tensors["c"] = tensors.pop("b")
    else:
        a = tensors["a"]
        tensors["a"] = {"value": a + 1, "shape": a.reshape(2, 2), "dtype": a.view(np.int64)}[change]
    save_file(tensors, tmp_path / "f", metadata=metadata)
    with pytest.raises(UserError, match=r"changed after it was written .*: remedy"):
        tensorfile.read(tmp_path / "f", "test 1", "remedy")


def test_another_format_is_named(tmp_path):
    tensorfile.write(tmp_path / "f", ABOUT, TENSORS)
    with pytest.raises(UserError, match="is a 'test 1' file, not 'test 2': remedy"):
        tensorfile.read(tmp_path / "f", "test 2", "remedy")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn])
def test_a_foreign_file_of_types_that_numpy_lacks_is_refused(tmp_path, dtype):
    safetensors.torch.save_file({"a": torch.zeros(2, dtype=dtype)}, tmp_path / "f")
    with pytest.raises(UserError, match="remedy"):
        tensorfile.read(tmp_path / "f", "test 1", "remedy")
