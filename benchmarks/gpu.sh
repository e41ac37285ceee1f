#!/usr/bin/env bash
# All that wants a GPU, in one call of under ten minutes: build, tests, compute-sanitizer, the cost of synchronising, and
# the layers beside torch.nn (cuDNN). What has left its result in $OUT is not done again, the build aside: call it again,
# on another machine too, and it goes on from there.
#
#   benchmarks/gpu.sh [--help] [--dry] [part...]  parts: build test sanitize primitives bench plot (all of them)
#   OUT=folder     results (benchmarks/results)   PYTHON=python3   one with a CUDA build of torch and the extras test, bench
#   LIMIT=570      seconds for the call: what does not fit is left for the next one
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
    build | test | sanitize | primitives | bench | plot) parts+=("$argument") ;;
    *) echo "gpu.sh: no part is called $argument (--help)" >&2; exit 2 ;;
  esac
done
[ ${#parts[@]} -gt 0 ] || parts=(build test sanitize primitives bench plot)
[ $dry = 1 ] || mkdir -p "$out"
status=0

left() { echo $((${LIMIT:-570} - SECONDS)); }

# run NAME COMMAND...: shows its output and appends it to $out/gpu.txt, with a verdict that is found there the next time
run() {
  local name=$1 log=$out/gpu.txt verdict=FAILED output
  shift
  if grep -sqx "== $name passed" "$log"; then
    echo "== $name: done before, see $log"
  elif [ "$(left)" -lt 10 ]; then
    echo "== $name: no time is left, call this again"
    return 1
  else
    echo "== $name ($(date -u +%H:%M:%S)): $*"
    [ $dry = 0 ] || return 0
    output=$(mktemp)
    if timeout -k 5 "$(left)" "$@" 2>&1 | tee "$output"; then verdict=passed; fi
    (flock 9 && echo "== $name ($(date -u)): $*" && cat "$output" && echo "== $name $verdict") 9>>"$log" >&9
    rm "$output"
    echo "== $name $verdict"
    [ $verdict = passed ]
  fi
}

build='
"$0" -c "import torch; assert torch.cuda.is_available(), \"torch sees no GPU\"" &&
  export FUSEDRNN_CUDA=1 MAX_JOBS=${MAX_JOBS:-$(nproc)} &&
  export TORCH_CUDA_ARCH_LIST=$("$0" -c "import torch; print(*torch.cuda.get_device_capability(), sep=\".\")") &&
  "$0" setup.py -q build_ext --inplace && "$0" -m fusedrnn.info'
primitives='nvcc -std=c++20 -O3 -arch=native -I csrc/cuda benchmarks/primitives.cu -o "$0" && "$0"'

for part in "${parts[@]}"; do
  case $part in
    build)
      [ $dry = 1 ] || sed -i 's/^== build passed$/== build passed before/' "$out/gpu.txt" 2>/dev/null || true
      run build bash -c "$build" "$python" || status=1
      ;;
    test)
      run test_cuda "$python" -m pytest -q tests/test_cuda.py tests/test_plan.py || status=1
      jobs=()
      for file in $(grep -l 'usefixtures("device")' tests/test_*.py); do # at once: each keeps a core busy, no GPU
        name=$(basename "$file" .py)
        run "$name" "$python" -m pytest -q -k cuda "$file" &
        jobs+=($!)
      done
      for job in "${jobs[@]}"; do wait "$job" || status=1; done
      ;;
    sanitize)
      for tool in memcheck racecheck synccheck; do # of our kernels; calls of CUDA that torch tries in vain do not count
        run $tool compute-sanitizer --tool $tool --kernel-name kns=fusedrnn --report-api-errors no --error-exitcode 1 \
          "$python" benchmarks/gpu.py touch || status=1
      done
      ;;
    primitives) run primitives bash -c "$primitives" "${TMPDIR:-/tmp}/fusedrnn-primitives" || status=1 ;;
    bench)
      echo "== bench ($(date -u +%H:%M:%S))"
      [ $dry = 1 ] || timeout -k 5 $(($(left) + 20)) \
        "$python" benchmarks/gpu.py bench --out "$out/gpu.json" --seconds "$(left)" || status=1
      ;;
    plot)
      echo "== plot"
      [ $dry = 1 ] || "$python" benchmarks/gpu_plot.py "$out/gpu.json" --out "$out" || status=1
      ;;
  esac
done
exit $status
