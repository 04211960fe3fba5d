"""What each of several processes opens, reads and collates of one store of examples.

    python scripts/benchmark_processes.py --records 50000 --steps 200

The store is made once, of the records of `benchmark_data.py`. Then 1, 2 and 4 processes
of `jax.distributed`, with a CPU device each, take the batches of the same steps as a
run does. Times are of the processor, since all of them share the machine.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmark_data import TOKENIZER, make

TOLD = "figures: "


def checked(arrays: list[Any]) -> int:
    """How many blocks of a mebibyte have been compared with their hashes."""
    return sum(int(one._seen.sum()) for one in arrays)


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """The figures of this process, which is one of several."""
    from transformers import AutoTokenizer

    from jaxpeft.config.data import DataSection
    from jaxpeft.data import blocks, load_train
    from jaxpeft.devices import cluster, sharding
    from jaxpeft.devices.launch import Rank

    address, count, index = args.member
    rank = Rank(address, int(count), int(index)) if int(count) > 1 else None
    cluster.join(rank, initialization_timeout=120, heartbeat_timeout=100)
    mesh = sharding.make_mesh(data=int(count), fsdp=1, tensor=1)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    seen: list[blocks.Blocks] = []
    asked = 0
    slice_of, begin = blocks.Blocks.__getitem__, blocks.Blocks.__init__

    def counted(self: blocks.Blocks, wanted: slice) -> Any:
        nonlocal asked
        values = slice_of(self, wanted)
        asked += values.nbytes
        return values

    def remembered(self: blocks.Blocks, *given: Any) -> None:
        begin(self, *given)
        seen.append(self)

    blocks.Blocks.__getitem__, blocks.Blocks.__init__ = counted, remembered
    given = {
        "train": {"path": args.path},
        "cache_dir": args.cache,
        "shuffle": args.shuffle,
    }
    start = time.process_time()
    batches = load_train(
        DataSection.model_validate(given), tokenizer, batch_size=args.batch_size, seed=0
    )
    opening, index_bytes, asked = time.process_time() - start, asked, 0
    before = checked(seen)
    batches.wanted = sharding.own_rows(mesh, args.batch_size)
    rows, times = 0, []
    for step in range(args.steps):
        start = time.thread_time()
        batch = batches[step]
        times.append(time.thread_time() - start)
        rows += int(batch["supervised"].any(1).sum())
    figures = {
        "index": index_bytes,
        "opening": opening,
        "rows": rows,
        "asked": asked,
        "checked": (checked(seen) - before) * blocks.BLOCK,
        "batch": sorted(times)[len(times) // 2],
    }
    if rank is not None:
        cluster.wait_for_all("the figures are there")
    return figures


def together(count: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The figures of so many processes that run at once."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = ["--path", args.path, "--cache", args.cache, "--steps", str(args.steps)]
    own += ["--batch-size", str(args.batch_size)] + ["--in-order"] * (not args.shuffle)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *own, "--member", address, str(count), str(i)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for i in range(count)
    ]
    said = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process has failed")
    lines = [next(x for x in out.splitlines() if x.startswith(TOLD)) for out in said]
    return [json.loads(line.removeprefix(TOLD)) for line in lines]


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--in-order", dest="shuffle", action="store_false")
    parser.add_argument("--member", nargs=3, help=argparse.SUPPRESS)
    for name in ("path", "cache"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.member:
        print(TOLD + json.dumps(measured(args)))
        return
    with tempfile.TemporaryDirectory() as folder:
        args.path, args.cache = f"{folder}/records.jsonl", f"{folder}/kept"
        make(Path(args.path), args.records)
        args.steps, steps = 1, args.steps
        together(1, args)  # makes the store
        args.steps = steps
        size = sum(f.stat().st_size for f in Path(args.cache).rglob("*.bin"))
        print(f"store: {args.records:,} records, {size / 1e6:,.0f} MB on the disk")
        print(
            "| processes | process | rows collated | MB asked for | MB checked | MB of "
            "the index | opening, CPU s | a batch, CPU ms |\n" + "|---" * 8 + "|"
        )
        for count in (1, 2, 4):
            for number, own in enumerate(together(count, args)):
                cells = (
                    f"{own['rows']:,}",
                    f"{own['asked'] / 1e6:.2f}",
                    f"{own['checked'] / 1e6:.1f}",
                    f"{own['index'] / 1e6:.2f}",
                    f"{own['opening']:.2f}",
                    f"{own['batch'] * 1e3:.2f}",
                )
                print(f"| {count} | {number} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
