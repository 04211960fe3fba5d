"""What a run leaves for others, opened by peft and transformers."""

import re
import shutil

import numpy as np
import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from jaxpeft import adapters, hf, kernel, models, tree
from jaxpeft.assembly import configuration

TOKENS = np.random.default_rng(0).integers(5, 4096, (2, 17))


@pytest.fixture(scope="module")
def ours(finished):
    """Logits of the run's adapter over its base, computed here."""
    cfg, adapter = configuration.open_run(finished)
    model = models.config(cfg.model.path)
    params = hf.load_adapter(hf.load(cfg.model.path, model), adapter, model)
    return np.asarray(models.forward(params, TOKENS, model))


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(TOKENS)).logits.float().numpy()


def changes(done):
    """The numbers of the line about a merge."""
    (line,) = (s for s in done.out.splitlines() if s.startswith("merging changed"))
    names = ("at most", "on average", "they reach")
    return {n: float(re.search(rf"{n} ([\d.e+-]+\d)", line)[1]) for n in names}


def bare(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def test_peft_loads_the_adapter_of_a_run(finished, tiny, ours):
    base = logits(bare(tiny))
    found = logits(PeftModel.from_pretrained(bare(tiny), finished / "adapter"))
    np.testing.assert_allclose(found, ours, atol=1e-4)
    assert np.abs(found - base).max() > 0.1


@pytest.mark.parametrize("kind", ["peft", "vllm"])
def test_peft_loads_an_exported_adapter(kind, finished, tiny, ours, command, tmp_path):
    out = tmp_path / "adapter"
    done = command("export", "--run", str(finished), "--to", kind, "--out", str(out))
    assert done.code == 0 and f"wrote and verified {out}" in done.out
    found = logits(PeftModel.from_pretrained(bare(tiny), out))
    np.testing.assert_allclose(found, ours, atol=1e-4)


def test_transformers_loads_the_merged_model(finished, ours, command, tmp_path):
    arguments = ["--run", str(finished), "--to", "merged", "--out"]
    out = tmp_path / "merged"
    done = command("export", *arguments, str(out))
    assert done.code == 0 and changes(done)["at most"] < 1e-4
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.float32
    np.testing.assert_allclose(logits(merged), ours, atol=1e-4)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.chat_template and len(tokenizer) == 4096
    assert merged.generation_config.eos_token_id == [4, 2]

    out = tmp_path / "half"
    done = command("export", *arguments, str(out), "--dtype", "bfloat16")
    assert done.code == 0 and 1e-3 < changes(done)["at most"] < 0.2
    merged = AutoModelForCausalLM.from_pretrained(out)
    assert merged.dtype == torch.bfloat16
    np.testing.assert_allclose(logits(merged.float()), ours, atol=0.2)


def test_a_model_and_its_adapter_are_a_run_s_equal(finished, tiny, command, tmp_path):
    out, again = tmp_path / "out", tmp_path / "again"
    source = ["--model", str(tiny), "--adapter", str(finished / "adapter")]
    assert command("export", *source, "--to", "merged", "--out", str(out)).code == 0
    source = ["--run", str(finished)]
    assert command("export", *source, "--to", "merged", "--out", str(again)).code == 0
    one, other = (folder / "model.safetensors" for folder in (out, again))
    assert one.read_bytes() == other.read_bytes()


def test_what_a_merge_changed_is_what_torch_sees(finished, tiny, command, tmp_path):
    """With a base in few bits: its logits before, and those of the merged files."""
    from jaxpeft.export import forms

    cfg = models.config(tiny)
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= {"quantization": "int8", "quantization_skip": ["o_proj"]}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "out"
    arguments = ["--run", str(run), "--to", "merged", "--dtype", "bfloat16", "--out"]
    told = changes(command("export", *arguments, str(out)))
    params = hf.load(tiny, cfg, quantization="int8", skip=("o_proj",))
    params = hf.load_adapter(params, finished / "adapter", cfg)
    tokens = np.asarray(
        [AutoTokenizer.from_pretrained(tiny)(forms.SAMPLE)["input_ids"]]
    )
    before = np.asarray(models.forward(params, tokens, cfg))
    with torch.no_grad():
        after = bare(out).eval()(torch.from_numpy(tokens)).logits.numpy()
    change = np.abs(after - before)
    assert told["at most"] == pytest.approx(change.max(), rel=0.06)
    assert told["on average"] == pytest.approx(change.mean(), rel=0.06)
    assert told["they reach"] == pytest.approx(np.abs(before).max(), rel=0.01)
    assert not kernel.nodes(hf.load(out, models.config(out)))


def doubled(write):
    """`write` for params whose adapters do twice what they should."""

    def wrong(params, *args, **settings):
        nodes = {
            name: node.replace(b=2 * node.b)
            for name, node in kernel.nodes(params).items()
        }
        return write(tree.replace(params, nodes), *args, **settings)

    return wrong


@pytest.mark.parametrize(
    ("kind", "place", "name"),
    [
        ("merged", adapters, "merge"),
        ("peft", hf, "save_adapter"),
        ("vllm", hf, "save_for_vllm"),
    ],
)
def test_what_computes_something_else_is_an_error_and_not_kept(
    kind, place, name, finished, command, tmp_path, monkeypatch
):
    monkeypatch.setattr(place, name, doubled(getattr(place, name)))
    arguments = ["--run", str(finished), "--to", kind, "--out"]
    done = command("export", *arguments, str(tmp_path / "new"))
    assert done.code == 3 and "verified" not in done.out
    assert "computes other logits than what was trained" in done.err
    (tmp_path / "empty").mkdir()
    if kind == "merged":
        assert command("export", *arguments, str(tmp_path / "empty")).code == 3
    assert [p.name for p in tmp_path.rglob("*")] == ["empty"]


def test_adapters_are_combined(finished, tiny, ours, command, tmp_path):
    adapter, out = str(finished / "adapter"), tmp_path / "out"
    parts = ["--adapter", f"{adapter}:1.5", "--adapter", f"{adapter}:-0.5"]
    arguments = ["--model", str(tiny), *parts, "--out", str(out)]
    for method in ([], ["--method", "svd", "--r", "4"]):
        done = command("combine", *arguments, *method)
        assert done.code == 0 and f"wrote and verified {out}" in done.out
        found = logits(PeftModel.from_pretrained(bare(tiny), out))
        np.testing.assert_allclose(found, ours, atol=1e-4)
        shutil.rmtree(out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--adapter", "runs/a"], "--adapter: found 'runs/a'; give a folder, a colon"),
        (["--adapter", "runs/a:x"], "--adapter: found 'runs/a:x'"),
        (["--adapter", "a:nan"], "--adapter: found 'a:nan'"),
        (["--adapter", "a:1", "--r", "3"], "--r: found 3 with --method cat"),
        (["--adapter", "a:1", "--r", "0", "--method", "svd"], "--r: found 0"),
    ],
)
def test_what_combine_cannot_read(arguments, message, tiny, command, tmp_path):
    out = ["--model", str(tiny), "--out", str(tmp_path / "out")]
    done = command("combine", *arguments, *out)
    assert done.code == 2 and message in done.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give one of --run DIR and --model PATH"),
        (["--run", "a", "--adapter", "b"], "--adapter belongs to --model"),
    ],
)
def test_what_export_cannot_read(arguments, message, command):
    done = command("export", *arguments, "--to", "peft", "--out", "nowhere")
    assert done.code == 2 and message in done.err


def test_no_adapter_is_none_to_export(tiny, command, tmp_path):
    for kind in ("peft", "vllm"):
        out = ["--to", kind, "--out", str(tmp_path / "out")]
        done = command("export", "--model", str(tiny), *out)
        assert done.code == 2 and f"--to: found '{kind}'; there is no" in done.err


@pytest.mark.parametrize("kind", ["peft", "vllm", "merged"])
def test_a_folder_that_holds_something_is_left_alone(finished, command, tmp_path, kind):
    (tmp_path / "mine").write_text("precious")
    arguments = ["--run", str(finished), "--to", kind, "--out", str(tmp_path)]
    done = command("export", *arguments)
    assert done.code == 2
    assert f"'{tmp_path}' exists and is not empty; name a new folder" in done.err
    assert [entry.name for entry in tmp_path.iterdir()] == ["mine"]


def test_a_model_gets_rows_for_the_tokens_of_a_tokenizer(tiny, command, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    size = models.config(tiny).vocab_size
    names = [f"<new{i}>" for i in range(size - len(tokenizer) + 3)]
    tokenizer.add_tokens(names)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    out = tmp_path / "larger"
    arguments = ("export", "--to", "merged", "--model", str(tiny), "--out", str(out))
    done = command(*arguments, "--tokenizer", str(tmp_path / "tokenizer"))
    assert done.code == 0 and f"{size + 3} rows, 3 of them new" in done.out
    written = AutoTokenizer.from_pretrained(out)
    assert written.convert_tokens_to_ids(names[-1]) == size + 2
    # Tokens that it had are answered as before, the new ones beside them.
    np.testing.assert_allclose(
        logits(bare(out))[..., :size], logits(bare(tiny)), atol=1e-5
    )
    again = command(*arguments[:-1], str(tmp_path / "no"), "--tokenizer", str(tiny))
    assert again.code == 2 and "it needs no more" in again.err
