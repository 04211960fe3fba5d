"""The doctor says what works here, and what to do about what does not."""

import jax
import pytest

from jaxpeft import cli, doctor
from jaxpeft.hardware.devices import device_of


@pytest.fixture
def told(monkeypatch, tmp_path, capsys):
    """told(): the doctor's exit code and lines."""
    monkeypatch.setenv("JAXPEFT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))

    def run():
        code = cli.run(doctor.main, [])
        return code, capsys.readouterr().out.splitlines()

    return run


def test_where_all_is_well_it_says_what_there_is(told):
    code, lines = told()
    assert code == 0 and lines[-1].startswith("ready to train: ")
    text = "\n".join(lines)
    assert f"jax {jax.__version__}" in text and "devices: 1 x cpu" in text
    assert "ok    a step compiles and runs" in text and "FAIL" not in text


def test_devices_that_cannot_be_used_end_it_with_1(told, monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda': no driver\nmore")

    monkeypatch.setattr(jax, "devices", devices)
    code, lines = told()
    assert code == 1
    at = next(n for n, line in enumerate(lines) if line.startswith("FAIL"))
    assert lines[at].endswith("Unable to initialize backend 'cuda': no driver")
    assert "JAX_PLATFORMS=cpu" in lines[at + 1]
    assert not any("a step" in line for line in lines)


def test_what_is_missing_or_broken_is_named_with_its_remedy(told, monkeypatch):
    monkeypatch.setitem(doctor.REQUIRED, "no-such-package", "nowhere")
    code, lines = told()
    assert code == 1 and "FAIL  packages: no-such-package missing" in lines
    assert any("pip install no-such-package" in line for line in lines)

    def broken():
        raise ImportError("libcudart.so.13: cannot open")

    (finding,) = doctor.run(broken)
    assert finding.fails and "ImportError: libcudart.so.13" in finding.text


def test_a_device_that_jax_passes_over_and_a_full_folder_are_remarks(
    monkeypatch, tmp_path
):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setitem(doctor.HARDWARE, "cuda", (str(tmp_path),))
    _, *found = doctor.devices()
    assert any(f.remedy == "pip install 'jaxpeft[cuda]'" for f in found)
    (tmp_path / "file").write_text("in the way")
    (finding,) = doctor.writable("cache", tmp_path / "file", "HF_HOME")
    assert "cannot be written" in finding.text and "HF_HOME" in finding.remedy
    assert not finding.fails


def test_peaks_go_by_the_names_that_jax_has_for_devices():
    for kind, teraflops in {
        "NVIDIA H100 80GB HBM3": 989,
        "NVIDIA H100 PCIe": 756,
        "NVIDIA H200": 989,
        "NVIDIA A100-SXM4-80GB": 312,
        "NVIDIA L4": 121,
        "NVIDIA L40S": 362,
        "TPU v5 lite": 197,
        "TPU v5": 459,
        "TPU v5p": 459,
    }.items():
        device = device_of(kind)
        assert device and device.bf16 == teraflops * 1e12, kind
    assert device_of("cpu") is None and device_of("NVIDIA L400") is None
