"""The format, against the safetensors package, and against damaged files."""

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jaxpeft.errors import InputError
from jaxpeft.hf import layout, safetensors_file
from jaxpeft.hf.safetensors_file import FLOATS, SafetensorsFile

RNG = np.random.default_rng(0)
TENSORS = {
    "a": RNG.standard_normal((3, 5)).astype(np.float32),
    "b": RNG.standard_normal((7,)).astype(np.float16),
    "c.empty": np.zeros((0, 4), np.float32),
    "d": RNG.standard_normal((2, 2, 2)).astype(ml_dtypes.bfloat16),
    "e.scalar": np.array(2.5, np.float32),
}


def test_reads_what_safetensors_writes(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(TENSORS, path, {"format": "pt"})
    file = SafetensorsFile(path)
    assert set(file.tensors) == set(TENSORS)
    for name, values in TENSORS.items():
        for _ in range(2):  # a released tensor can be read again
            np.testing.assert_array_equal(file.view(name), values)
            assert file.view(name).dtype == values.dtype
            file.release(file.tensors[name])


def test_safetensors_reads_what_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    announced = {name: (v.dtype, v.shape) for name, v in TENSORS.items()}
    safetensors_file.write(path, announced, TENSORS.__getitem__, {"format": "pt"})
    found = safetensors.numpy.load_file(path)
    for name, values in TENSORS.items():
        assert found[name].dtype == values.dtype and found[name].shape == values.shape
        np.testing.assert_array_equal(found[name], values)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_a_tensor_other_than_announced_is_refused(tmp_path):
    with pytest.raises(ValueError, match="not as announced"):
        safetensors_file.write(
            tmp_path / "x", {"a": (np.dtype("f4"), (2,))}, lambda _: np.zeros(3), {}
        )


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"a": 1}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F31", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}',
        '{"a": {"dtype": "F32", "shape": [9223372036854775807, 2], '
        '"data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
        ' "a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}',
    ],
)
def test_headers_that_lie(tmp_path, header):
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(InputError, match="x.safetensors"):
        SafetensorsFile(path)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(place=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_changed_byte_is_an_error_or_stays_within_the_file(
    tmp_path, place, byte, cut
):
    path = tmp_path / "x.safetensors"
    content = bytearray(safetensors.numpy.save(TENSORS))
    content[place % len(content)] = byte
    path.write_bytes(content[: len(content) - cut])
    try:
        file = SafetensorsFile(path)
    except InputError:
        return
    for name, tensor in file.tensors.items():
        if tensor.dtype in FLOATS:
            assert file.view(name).shape == tensor.shape


@pytest.mark.parametrize("dtype", FLOATS.values())
def test_is_finite_agrees_with_numpy(dtype):
    largest = ml_dtypes.finfo(dtype).max
    for value in (0.0, -0.0, 1.0, largest, -largest, np.inf, -np.inf, np.nan, -np.nan):
        values = np.array([1.0, -2.0, value, 0.5], dtype)
        assert layout.is_finite(values) == bool(np.isfinite(values).all()), value
        column = np.stack([values, values])[:, 2:]
        assert layout.is_finite(column) == bool(np.isfinite(values).all()), value
