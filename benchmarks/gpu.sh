#!/usr/bin/env bash
# All that wants a GPU, in one call of under ten minutes: build, tests, compute-sanitizer, the cost of synchronising, and
# the layers beside torch.nn (cuDNN). A part that has left its result in $OUT is not run again.
#
#   benchmarks/gpu.sh [--help] [--dry] [part...]       parts: build test sanitize primitives bench (all of them)
#   OUT=folder     results (benchmarks/results)        PYTHON=python3   one with a CUDA build of torch
#   LIMIT=570      seconds for the call: bench leaves out what does not fit, and goes on from there when called again
set -euo pipefail
cd "$(dirname "$0")/.."

out=${OUT:-benchmarks/results}
python=${PYTHON:-python3}
dry=0
parts=()
for argument in "$@"; do
  case $argument in
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --dry) dry=1 ;;
    build | test | sanitize | primitives | bench) parts+=("$argument") ;;
    *) echo "gpu.sh: no part is called $argument (--help)" >&2; exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(build test sanitize primitives bench)
[ $dry = 1 ] || mkdir -p "$out"
status=0

# run PART COMMAND...: shows its output and keeps it in $out/gpu-PART.txt, if it succeeds
run() {
  local part=$1 log=$out/gpu-$1.txt
  shift
  if [ -e "$log" ]; then
    echo "== $part: done before, see $log"
    return
  fi
  echo "== $part ($(date -u +%H:%M:%S)): $*"
  [ $dry = 0 ] || return 0
  if "$@" 2>&1 | tee "$log.part"; then
    mv "$log.part" "$log"
  else
    mv "$log.part" "$out/gpu-$part.failed.txt"
    echo "== $part FAILED"
    status=1
  fi
}

build() {
  "$python" -c 'import torch; assert torch.version.cuda, "this torch is not a CUDA build"' &&
    FUSEDRNN_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} "$python" setup.py -q build_ext --inplace &&
    "$python" -m fusedrnn.info
}

sanitize() {
  local tool
  for tool in memcheck racecheck synccheck; do
    echo "-- $tool"
    compute-sanitizer --tool $tool --error-exitcode 1 "$python" benchmarks/gpu.py touch || return 1
  done
}

primitives() {
  nvcc -std=c++20 -O3 -arch=native -I csrc/cuda benchmarks/primitives.cu -o "$out/primitives" && "$out/primitives" &&
    rm "$out/primitives"
}

for part in "${parts[@]}"; do
  case $part in
    build) run build build ;;
    test) run test "$python" -m pytest -q tests/test_cuda.py tests/test_plan.py ;;
    sanitize) run sanitize sanitize ;;
    primitives) run primitives primitives ;;
    bench)
      echo "== bench ($(date -u +%H:%M:%S))"
      [ $dry = 1 ] || "$python" benchmarks/gpu.py bench --out "$out/gpu.json" --seconds $((${LIMIT:-570} - SECONDS)) ||
        status=1
      ;;
  esac
done
exit $status
