#!/usr/bin/env bash
# Ten minutes on one GPU or TPU slice: everything that waits for a device, in one table.
#
#     bash scripts/device_check.sh [FOLDER]
#
# Needs the package installed with the extra of the device (cuda or tpu) and `test`.
# Writes what it finds into FOLDER (default: device_check), and goes on when a part fails.
set -u
cd "$(dirname "$0")/.."
out=${1:-device_check}
mkdir -p "$out"
part() {
    local name=$1
    shift
    echo "== $name"
    timeout "$seconds" "$@" 2>"$out/$name.err" | tee "$out/$name.txt"
    local code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || echo "$name ended with $code: $(tail -n 1 "$out/$name.err")"
}
seconds=60 part doctor python -m jaxpeft.doctor
seconds=330 part steps python scripts/benchmark_device.py --minutes 5 --out "$out/steps.jsonl"
# Equality with the references, on the device itself.
seconds=120 part kernels env JAX_PLATFORMS= python -m pytest -q -p no:cacheprovider \
    tests/models/test_attention.py tests/models/test_attention_kernels.py tests/quant -k "not compiled"
seconds=60 part optimizers python scripts/benchmark_optimizers.py --only adamw adamw_8bit
seconds=90 part beside_torch python scripts/benchmark.py --dtype bfloat16
echo "everything is in $out"
