#!/usr/bin/env bash
# Train in several processes on this machine, as on a cluster: to try a set-up, or to
# use each of several GPUs from a process of its own.
#
#   bash scripts/launch_local.sh 2 --config configs/quickstart.yaml output_dir=runs/two
#
# The first argument is the number of processes, the others are those of the training
# command. On a CPU each process has one device. The first process writes the log. When
# one process fails, the others end too. At Ctrl-C or SIGTERM all save and end with code
# 75; repeated, the command goes on from there.
# COORDINATOR (host:port, default 127.0.0.1 and a free port) and PYTHON may be set.
set -uo pipefail

if [[ "${1:-}" == "-h" || "${1:-}" == "--help" ]]; then
    sed -n '2,/^set/{s/^# \{0,1\}//;/^set/d;p}' "${BASH_SOURCE[0]}"
    exit 0
fi
if [[ ! "${1:-}" =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: bash $0 PROCESSES --config FILE [section.key=value ...]" >&2
    exit 2
fi
processes=$1
shift
here="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
python="${PYTHON:-}"
if [ -z "$python" ]; then
    python=python3
    [ -x "$here/.venv/bin/python" ] && python="$here/.venv/bin/python"
fi
if [ -z "${COORDINATOR:-}" ]; then
    port=$("$python" -c 'import socket
with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    print(s.getsockname()[1])') || exit 1
    COORDINATOR="127.0.0.1:$port"
fi

# Every process uses the GPU of its own number where there are as many as processes.
gpus=0
if [ -z "${CUDA_VISIBLE_DEVICES:-}" ] && command -v nvidia-smi >/dev/null; then
    gpus=$(nvidia-smi --list-gpus | wc -l)
fi

children=()
forward() {
    kill -s "$1" "${children[@]}" 2>/dev/null
}
# Background processes of a script ignore SIGINT: they are asked to save and end.
trap 'forward TERM' TERM INT

for ((i = 0; i < processes; i++)); do
    if ((gpus >= processes)); then
        export CUDA_VISIBLE_DEVICES=$i
    fi
    "$python" -m jaxpeft.train "$@" --coordinator "$COORDINATOR" \
        --num-processes "$processes" --process-id "$i" &
    children+=($!)
done

# A signal ends `wait` early, so each child is waited for until it is gone. The code of
# the first one that failed by itself counts: the others may only have lost it.
code=0
for child in "${children[@]}"; do
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        result=$?
        kill -0 "$child" 2>/dev/null && continue
    done
    wait "$child" 2>/dev/null
    result=$?
    if ((code == 0 || (result != 0 && result < 128 && code >= 128))); then
        code=$result
    fi
done
exit "$code"
