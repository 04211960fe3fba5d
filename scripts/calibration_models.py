"""Makes the small models that scripts/calibrate_rates.py trains further.

    python scripts/calibration_models.py
    python scripts/calibration_models.py --steps 2000 --texts DIR

One has the shape of Qwen3, one that of Gemma3, with about 1.4 million parameters each;
"wide" is a Llama of 2.8 million, whose every matrix takes LoRA of rank 256. They have
the tokenizer of the shipped toy. Torch draws their weights, and `train` with method
full trains them on wiki_demo.txt, c4_demo.jsonl and alpaca_en_demo.json, in a few
minutes of one core each. Needs transformers; what is there is not made again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOY = ROOT / "jaxpeft" / "assets" / "tiny-llama"
FOLDER = ROOT / "runs" / "calibration" / "models"
TEXTS = ROOT.parent / "shared" / "data" / "llamafactory"
SIZES = {
    "vocab_size": 4096,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 4,
    "pad_token_id": 0,
}
SHAPES = {
    "qwen3": {"num_hidden_layers": 4},
    "gemma3": {
        "model_type": "gemma3_text",
        "num_hidden_layers": 6,
        "sliding_window": 64,
        "query_pre_attn_scalar": 32,
    },
    "wide": {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    },
}
SHORTER = {"wide": 300}  # steps, where they are not what --steps says


def start(name: str, folder: Path) -> None:
    """Writes a model of drawn weights, with the toy's tokenizer."""
    import torch
    import transformers

    torch.manual_seed(0)
    keys = {**SIZES, **SHAPES[name]}
    kind = keys.pop("model_type", name)
    config = transformers.AutoConfig.for_model(kind, **keys)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(TOY / file, folder / file)
    count = sum(weights.numel() for weights in model.parameters())
    print(f"{name}: {count:,} parameters", flush=True)


def pretrain(begun: Path, output: Path, texts: Path, steps: int) -> None:
    """Trains all of a model on texts."""
    sources = [
        {"path": str(texts / "wiki_demo.txt"), "format": "text"},
        {"path": str(texts / "c4_demo.jsonl"), "format": "text"},
        {"path": str(texts / "alpaca_en_demo.json"), "format": "alpaca"},
    ]
    settings = {
        "output_dir": str(output),
        "model": {"path": str(begun), "dtype": "float32"},
        "adapter": {"method": "full"},
        "data": {"train": sources, "max_length": 128, "packing": True},
        "optimizer": {"name": "adamw", "learning_rate": 3e-3, "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup_ratio": 0.05},
        "training": {
            "max_steps": steps,
            "batch_size": 8,
            "logging_steps": 50,
            "save_steps": steps,
            "samples": 0,
        },
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_suffix(".yaml")
    config.write_text(json.dumps(settings, indent=1) + "\n")  # JSON is YAML
    words = (sys.executable, "-m", "jaxpeft.train", "--config", str(config))
    subprocess.run(words, check=True, cwd=ROOT)


def main() -> None:
    """Makes what is not there yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--texts", type=Path, default=TEXTS)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--only", nargs="*", default=list(SHAPES), choices=SHAPES)
    args = parser.parse_args()
    for name in args.only:
        if (args.folder / name / "model").is_dir():
            continue
        begun = args.folder / f"{name}-start"
        if not begun.is_dir():
            start(name, begun)
        steps = SHORTER.get(name, args.steps)
        pretrain(begun, args.folder / name, args.texts.resolve(), steps)


if __name__ == "__main__":
    main()
