"""A LoRA training step over the base in few bits, beside the same base in whole ones.

    python scripts/benchmark_quantized.py --rounds 7

The programs are those of scripts/benchmark.py, and take turns as they do there.
"""

import argparse
import statistics

import benchmark
import benchmark_child

# (dtype, quantization) of the frozen base.
BASES = (
    ("float32", "none"),
    ("bfloat16", "none"),
    ("float32", "int8"),
    ("float32", "nf4"),
    ("float32", "nf4_single"),
)


def main() -> None:
    """Measure every base and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    benchmark_child.add_shapes(parser)
    parser.add_argument("--rounds", type=int, default=5, help="turns of each base")
    parser.add_argument("--steps", type=int, default=2, help="steps a turn")
    args = benchmark_child.complete(parser.parse_args())
    children = []
    try:
        for dtype, kind in BASES:
            benchmark.say(f"starting {dtype}, {kind}")
            more = ("none", "--quantization", kind)
            children.append(benchmark.Child("jaxpeft", args, dtype, *more))
        for turn in range(args.rounds + 1):
            order = children if turn % 2 == 0 else children[::-1]
            for child in order:
                seconds = child.steps(args.steps)
                child.seconds += seconds if turn else []  # the first warms up
    finally:
        for child in children:
            child.close()
    whole = statistics.median(children[0].seconds)
    print("| base | s/step | of float32's time | peak MiB | first loss |")
    print("|---|---|---|---|---|")
    for (dtype, kind), child in zip(BASES, children, strict=True):
        median = statistics.median(child.seconds)
        print(
            f"| {dtype if kind == 'none' else kind} | {median:.3f} | "
            f"{median / whole:.2f} | {child.last['peak_mib']:,.0f} | "
            f"{child.first['loss']:.5f} |"
        )


if __name__ == "__main__":
    main()
