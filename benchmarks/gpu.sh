#!/usr/bin/env bash
# All GPU tests and benchmarks, under ten minutes on one GPU, in parts that can be resumed:
#     benchmarks/gpu.sh OUT              # on a machine with a GPU; a part that is done is not repeated
#     SMOKE=1 benchmarks/gpu.sh OUT      # the same on a CPU at the smallest sizes, to see that the script is sound
# PYTHON names the interpreter, LIMIT the seconds of all parts together. OUT/summary.txt says what each part came to.
set -u
out=${1:?"give a folder for the results"}
python=${PYTHON:-python}
limit=${LIMIT:-570}
smoke=${SMOKE:-}
device=cuda
[ -n "$smoke" ] && device=cpu
cd "$(dirname "$0")/.." || exit 2
mkdir -p "$out"
out=$(cd "$out" && pwd)
export PYTHONPATH=$PWD/src:$PWD/studies/src:$PWD OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
started=$SECONDS
failed=0

part() { # name, seconds, command: skipped when done, cut at its seconds or at what is left of all
    local name=$1 most=$2 left=$((limit - SECONDS + started))
    shift 2
    if [ -e "$out/$name.done" ]; then echo "$name: done before"; return; fi
    if [ "$left" -lt 20 ]; then echo "$name: left for the next call" | tee -a "$out/summary.txt"; failed=1; return; fi
    local begun=$SECONDS
    timeout "$((most < left ? most : left))" "$@" >"$out/$name.log" 2>&1
    local code=$?
    echo "$name: exit $code after $((SECONDS - begun)) s" | tee -a "$out/summary.txt"
    if [ "$code" -eq 0 ] || { [ "$code" -eq 5 ] && [ -n "$smoke" ]; }; then touch "$out/$name.done"; else failed=1; fi
}

small=""
[ -n "$smoke" ] && small="--smoke"
part tests-train 120 "$python" -m pytest tests/train tests/augment tests/average -m gpu -q -n 0 -p no:cacheprovider
part tests-trainers 120 "$python" -m pytest tests/integrations -m gpu -q -n 0 -p no:cacheprovider
# shellcheck disable=SC2086
for name in average graph offload noise step; do
    part "$name" 90 "$python" benchmarks/gpu.py "$name" --device "$device" $small --json "$out/$name.json"
done
rounds="--steps 1100 --turn 20 --first 100"
[ -n "$smoke" ] && rounds="--steps 60 --turn 2 --first 2 --width 16"
# shellcheck disable=SC2086
part trainers 180 "$python" benchmarks/trainers.py --device "$device" $rounds --json "$out/trainers.json"
part digits 90 "$python" -m isobatch train examples/digits.toml --device "$device" --batch-size 128 --out "$out/digits"
[ "$failed" -eq 0 ] && echo "all parts are done" || echo "call again to go on"
exit "$failed"
