"""Where things lie, compiled programs and their memory, and small random Llamas."""

import contextlib
import ctypes
import gc
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis.internal import entropy
from jax._src.interpreters import mlir
from jax.experimental.compilation_cache import compilation_cache

from jaxpeft import console, models
from jaxpeft.devices import cpus

# The tests compile thousands of tiny programs: code of the best quality for each would
# take five times the time of all else. What XLA does before that is as ever.
FAST_COMPILES = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FAST_COMPILES))

# What the user keeps is neither used nor added to: the tests keep their programs apart.
os.environ.setdefault("JAXPEFT_CACHE_DIR", "off")

PROGRAMS_BYTES = 2**30  # kept from run to run, those used last
MEMORY_BYTES = 2**30  # resident in a process before its compiled programs are dropped
SLACK_BYTES = 2**28  # what must have come on top of what no clearing frees
FEW = 2  # cases of a test that `scripts/test.sh --fast` runs
LOWERED_TOGETHER = 64  # programs that are lowered in one MLIR context
COLLECTED_AFTER = (10_000, 20, 50)  # what is made before garbage is looked for

# A deprecation inside a library that results are compared with, or that a sink or a
# test opens, is no failure of ours. In jax, flax, optax, orbax and our own code it is.
REFERENCES = """torch torchao transformers huggingface_hub peft accelerate bitsandbytes
adam_mini apollo_torch came_pytorch galore_torch grokadamw lomo_optim optimi prodigyopt
schedulefree optuna alembic sqlalchemy tensorboard tensorboardX google wandb selenium
coreweave_evaluations opentelemetry trackio gradio_client starlette uvicorn httpx
urllib3""".split()

# Of a Chromium that asks nobody for anything.
CHROMIUM = """--headless=new --no-sandbox --disable-gpu --no-first-run --disable-sync
--disable-background-networking --disable-component-update --disable-quic
--disable-dev-shm-usage --window-size=1200,900""".split()

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "initializer_range": 0.2,  # transformers' own 0.02 gives logits of almost nothing
    "eos_token_id": None,
    "bos_token_id": None,
}


def pytest_configure(config: pytest.Config) -> None:
    """Lets the references' deprecations pass: a filter's module is where one points."""
    inside = rf"({'|'.join(REFERENCES)})(\.|$)"
    for kind in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
        config.addinivalue_line("filterwarnings", f"ignore::{kind}:{inside}")
    # A program that another process is still writing down is compiled here as well.
    kept = "Error (reading|writing) persistent compilation cache entry"
    config.addinivalue_line("filterwarnings", f"ignore:{kept}:UserWarning")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test's cases all but a few, spread over them, count as slow."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        cases.setdefault(item.nodeid.split("[", 1)[0], []).append(item)
    for group in cases.values():
        every = -(-len(group) // FEW)
        for place, item in enumerate(group):
            if place % every:
                item.add_marker("slow")


def pytest_collection_finish() -> None:
    """What all modules have made by now stays: no later collection looks through it."""
    with entropy.deterministic_PRNG():  # asks who refers to what is seeded, only once
        gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTED_AFTER)


class Llama(NamedTuple):
    """One model twice: in torch, and as a config and params here, both float32."""

    torch: Any
    cfg: models.ModelConfig
    params: dict[str, Any]


def programs_folder() -> Path:
    """Where programs are kept: a folder for each jax, set of flags and processor."""
    place = os.environ.get("JAXPEFT_TEST_CACHE")
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        text = Path("/proc/cpuinfo").read_text()
        processor = next(s for s in text.splitlines() if s.startswith("flags"))
    except (OSError, StopIteration):
        processor = platform.processor()
    key = hashlib.sha256((os.environ["XLA_FLAGS"] + processor).encode()).hexdigest()
    name = f"jax{version('jax')}-jaxlib{version('jaxlib')}-{key[:12]}"
    return Path(place or Path(home, "jaxpeft-tests")) / name


def keep_programs() -> None:
    """Every program that these tests and their processes compile is kept on disk."""
    folder = programs_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that cannot be written to: compile as ever
        return
    for name, value in {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        os.environ[name.upper()] = str(value)
        jax.config.update(name, value)


keep_programs()


def share_contexts() -> None:
    """Programs are lowered in one MLIR context, up to `LOWERED_TOGETHER` of them.

    jax makes a context for each program: 7 ms, as much as a program of one operation
    needs beside it, and memory that stays as long as the program does.
    """
    make, kept = mlir.make_ir_context, threading.local()

    def shared() -> Any:
        kept.uses = getattr(kept, "uses", 0) + 1
        if kept.uses % LOWERED_TOGETHER == 1:
            kept.context = make()
        return kept.context

    mlir.make_ir_context = shared


share_contexts()


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Programs that nobody has used for longest go, once there are too many.

    jax's own bound looks through the whole folder whenever it writes a program.
    """
    if hasattr(session.config, "workerinput") or not programs_folder().is_dir():
        return
    left = PROGRAMS_BYTES
    with contextlib.suppress(FileNotFoundError):  # another session is doing the same
        programs = programs_folder().parent.glob("jax*-jaxlib*/*-cache")
        kept = [(path, path.stat()) for path in programs]
        for path, stat in sorted(kept, key=lambda entry: -entry[1].st_atime):
            left -= stat.st_size
            if left < 0:
                path.unlink()


@pytest.fixture(scope="session")
def of_devices() -> Callable[[int], dict[str, str]]:
    """of_devices(count): the environment of a process of so many CPU devices."""

    def make(count: int) -> dict[str, str]:
        flags = f"{os.environ['XLA_FLAGS']} {cpus.FLAG}{count}"
        threads = {cpus.VARIABLE: str(cpus.THREADS * count)}
        return {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, **threads}

    return make


@pytest.fixture(scope="session")
def verdicts() -> Path:
    """Where what compilers of devices that are not here said outlives a session.

    The compiler is asked again wherever the program, its version or ours are others:
    see `jaxpeft.plan.vendor`. Its flags are in the folder's name.
    """
    return programs_folder() / "verdicts"


@pytest.fixture
def kept_verdicts(verdicts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `jaxpeft.plan` asks a compiler is kept there."""
    monkeypatch.setattr("jaxpeft.plan.vendor.folder", lambda: verdicts)


def resident() -> int:
    """The bytes that this process holds in memory (the most so far, without /proc)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return pages * resource.getpagesize()


def drop_programs() -> None:
    """Gives back the memory of what was compiled and of what nothing points to."""
    jax.clear_caches()
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """After a test: programs are dropped where they take much memory."""
    yield
    if resident() > max(MEMORY_BYTES, _held["after"] + SLACK_BYTES):
        drop_programs()
        _held["after"] = resident()


_held = {"after": 0}


@pytest.fixture(autouse=True)
def own_remarks() -> None:
    """What was remarked in one test is remarked in the next as well."""
    console.forget_remarks()


@pytest.fixture
def own_programs(tmp_path: Path) -> Iterator[Path]:
    """A folder for this test's programs alone: whatever it asks for first is compiled.

    For tests of compilation itself; they need not fear what an earlier run has kept.
    """
    before = jax.config.values["jax_compilation_cache_dir"]
    folder = tmp_path / "programs"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    compilation_cache.reset_cache()  # whether there is one is asked only once
    yield folder
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def asset_model() -> Path:
    """The folder of the model that the package ships."""
    return ROOT / "jaxpeft" / "assets" / "tiny-llama"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared(name): a path in ../shared, or a skip where it is not there."""

    def find(name: str) -> Path:
        path = SHARED / name
        if not path.exists():
            pytest.skip(f"needs {name} in ../shared")
        return path

    return find


@pytest.fixture(scope="session")
def make_torch() -> Callable[..., Any]:
    """make_torch(**LlamaConfig fields): a random torch Llama, norms and biases too."""
    import torch
    import transformers

    def make(**settings: Any) -> Any:
        torch.manual_seed(0)
        config = transformers.LlamaConfig(**{**SMALL, **settings})
        model = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture(scope="session")
def make_llama(make_torch: Callable[..., Any]) -> Callable[..., Llama]:
    """make_llama(**LlamaConfig fields): a random model, there and here."""

    def make(**settings: Any) -> Llama:
        model = make_torch(**settings)
        cfg = models.config(json.loads(model.config.to_json_string(use_diff=False)))
        state = model.state_dict()

        def value(spec: models.ParamSpec) -> jax.Array:
            tensors = [state[name].numpy() for name in spec.hf_names()]
            tensors = [t.T if spec.transposed else t for t in tensors]
            return jnp.asarray(np.stack(tensors) if spec.stacked else tensors[0])

        params = jax.tree.map(value, models.param_specs(cfg), is_leaf=models.is_spec)
        return Llama(model, cfg, params)

    return make


@pytest.fixture(scope="session")
def llama(make_llama: Callable[..., Llama]) -> Llama:
    """The small random model with grouped queries and a head of its own."""
    return make_llama()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium that notes what its pages say and ask for."""
    from selenium import webdriver

    names = ("chromium", "chromium-browser", "google-chrome")
    binary = next(filter(None, map(shutil.which, names)), None)
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromium-driver (apt-get install them)")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    profile = tmp_path_factory.mktemp("profile")
    for flag in [*CHROMIUM, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    service = webdriver.ChromeService(executable_path=driver, log_output=os.devnull)
    opened = webdriver.Chrome(options=options, service=service)
    yield opened
    opened.quit()
