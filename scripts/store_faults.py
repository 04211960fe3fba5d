"""Kills the making of a store at random moments, and makes one twice at once.

    python scripts/store_faults.py --records 20000 --kills 12

After each `kill -9` the store is opened again: what is in batches has to be what an
undisturbed making gives, and nothing half-made may be left over.
"""

import argparse
import hashlib
import random
import subprocess
import sys
import tempfile
import time
from importlib import resources
from pathlib import Path

from benchmark_data import make

TOKENIZER = str(Path(str(resources.files("jaxpeft"))) / "assets" / "tiny-llama")


def content(path: str, cache: str, workers: int) -> str:
    """A hash of the first batches of a source."""
    from transformers import AutoTokenizer

    from jaxpeft.config.data import DataSection
    from jaxpeft.data import load_train

    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    more = {"num_workers": workers, "cache_dir": cache}
    section = DataSection.model_validate({"train": {"path": path}, **more})
    batches = load_train(section, tokenizer, batch_size=8, seed=0)
    digest = hashlib.blake2b(digest_size=16)
    for step in range(200):
        for _, values in sorted(batches[step].items()):
            digest.update(values.tobytes())
    return digest.hexdigest()


def start(path: Path, cache: Path, workers: int) -> subprocess.Popen:
    """A process that says `content`."""
    given = [str(path), str(cache), str(workers)]
    return subprocess.Popen(
        [sys.executable, __file__, "--content", *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def finished(process: subprocess.Popen) -> str:
    """What a process says of the content."""
    said, _ = process.communicate()
    assert process.returncode == 0, process.returncode
    return said.strip()


def main() -> int:
    """Prints what came of it; 1 where anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--content", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.content:
        path, cache, workers = args.content
        print(content(path, cache, int(workers)))
        return 0
    rng, wrong, killed = random.Random(0), 0, 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "records.jsonl"
        make(path, args.records)
        begun = time.monotonic()
        right = finished(start(path, folder / "right", args.workers))
        whole = time.monotonic() - begun
        for number in range(args.kills):
            process = start(path, folder / "killed", args.workers)
            time.sleep(rng.uniform(0.2, 0.9) * whole)
            killed += process.poll() is None
            process.kill()
            process.wait()
            if number % 4 == 3:  # between them kills follow kills
                wrong += finished(start(path, folder / "killed", args.workers)) != right
                left = list((folder / "killed").glob("*.making-*"))
                wrong += bool(left)
                for kept in (folder / "killed").glob("*/meta.json"):
                    kept.unlink()  # so that the next one makes it again
        print(f"kill -9 in the making: {killed} of {args.kills}, {wrong} wrong after")
        both = [start(path, folder / "two", args.workers) for _ in range(2)]
        apart = [finished(process) != right for process in both]
        stores = len(list((folder / "two").glob("*/meta.json")))
        print(f"two makers at once: {sum(apart)} wrong, {stores} store")
        wrong += sum(apart) + (stores != 1)
    return int(wrong > 0)


if __name__ == "__main__":
    raise SystemExit(main())
