"""The torch + peft side of the benchmark: a child that scripts/benchmark.py starts.

The model is transformers' Llama with SDPA attention, LoRA is peft's on every linear
layer, and bfloat16 runs under autocast, as transformers' Trainer does: base weights
in bfloat16, adapters and optimizer state in float32. Rematerialization of any kind is
gradient checkpointing of each layer.
"""

# First, since its import starts the clock.
import benchmark_child as child  # isort: skip

import argparse
import contextlib
import warnings

import peft
import torch
import transformers


def build(args: argparse.Namespace, device: torch.device) -> peft.PeftModel:
    """The base with its seeded weights and a new LoRA on all linear layers."""
    config = transformers.LlamaConfig(**child.llama_config(args))
    torch.manual_seed(args.seed)
    with device:
        base = transformers.AutoModelForCausalLM.from_config(
            config, dtype=getattr(torch, args.dtype), attn_implementation="sdpa"
        )
    with torch.no_grad():
        for name, parameter in base.named_parameters():
            values = child.weight(args, name, tuple(parameter.shape))
            parameter.copy_(torch.from_numpy(values))
    lora = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=args.rank,
        lora_alpha=2 * args.rank,
        target_modules="all-linear",
    )
    model = peft.get_peft_model(base, lora)
    if args.remat != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def make_step(args: argparse.Namespace, model: peft.PeftModel, device: torch.device):
    """A function that trains one step on the fixed batch and returns its loss."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=2e-4, weight_decay=0.01)
    tokens = torch.from_numpy(child.tokens(args)).long().to(device)
    mixed = (
        torch.autocast(device.type, torch.bfloat16)
        if args.dtype == "bfloat16"
        else contextlib.nullcontext()
    )

    def step() -> float:
        with mixed:
            loss = model(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return loss.item()

    return step


def device_memory() -> dict[str, float | None]:
    """Peak and current memory of the GPU's tensors in MiB."""
    return {
        "peak_mib": torch.cuda.max_memory_allocated() / child.MIB,
        "current_mib": torch.cuda.memory_allocated() / child.MIB,
    }


def main() -> None:
    """Build the model and serve the protocol."""
    # transformers 5 has renamed these, but not every release knows the new names, and
    # peft uses the old ones itself.
    warnings.filterwarnings("ignore", ".*gradient_checkpointing", FutureWarning)
    args = child.arguments(__doc__.partition("\n")[0])
    torch.set_num_threads(args.threads)
    on_gpu = args.device == "gpu"
    if on_gpu and not torch.cuda.is_available():
        raise SystemExit(
            "this build of torch finds no CUDA device: install one that does, or give "
            "--device cpu or --only jaxpeft"
        )
    device = torch.device("cuda" if on_gpu else "cpu")
    model = build(args, device)
    counts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "trainable": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    about = {
        "program": f"torch {torch.__version__} + peft {peft.__version__}",
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        **counts,
    }
    memory = device_memory if on_gpu else child.process_memory
    child.serve(about, make_step(args, model, device), memory)


if __name__ == "__main__":
    main()
