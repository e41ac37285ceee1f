#!/usr/bin/env bash
# All that needs a GPU, in fifteen minutes and with the first answers after one. Before, on a machine with nvcc:
#
#   benchmarks/gpu.sh build    compiles for the GPU's architecture beside PYTHON's torch, tries to import it, and says what
#                              to bring along to a machine on which nothing can be built or installed
#
# and then, in this order (default: all of them):
#
#   benchmarks/gpu.sh [--dry] [part...]
#   first      info, clusters that run at once, and each tier in a process of its own against the reference
#   shapes     eight shapes in bf16 and fp16, forward and training, beside torch.nn, with the estimates
#   profile    Nsight Compute on four kernels, where there is ncu
#   test       the tests on CUDA, each tier in a process of its own: a kernel that traps takes the process with it
#   sanitize   memcheck, racecheck and synccheck, where there is compute-sanitizer
#   bench      all shapes beside torch.nn, and a plot
#
# What is done is not done again, so a run that was cut off goes on; a part that failed is. What fails does not stop the
# rest; the exit status is 1 then.
#
#   KEEP=build/gpu      results, logs and what is done; FRESH=1 empties it
#   OUT=folder          where KEEP is copied after each command, if only that folder survives
#   PYTHON=python3      one with a CUDA build of torch
#   ARCHITECTURES=9.0   for build
#   LIMIT=300           seconds for each command
set -uo pipefail
cd "$(dirname "$0")/.." || exit
keep=${KEEP:-build/gpu} python=${PYTHON:-python3} dry=0 parts=() status=0
for argument in "$@"; do
  case $argument in
    --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    --dry) dry=1 ;;
    build | first | shapes | profile | test | sanitize | bench) parts+=("$argument") ;;
    *) echo "gpu: there is no part $argument (--help lists them)" >&2; exit 2 ;;
  esac
done
[ "${FRESH:-0}" = 0 ] || rm -rf "$keep"
export FUSEDRNN_CUDNN=0 # the kernels are asked about
export PYTHONPATH=$PWD:$keep/site${PYTHONPATH:+:$PYTHONPATH}

# run NAME COMMAND...: unless it is done, with its output also in $keep/NAME.txt
run() {
  local name=$1
  shift
  echo "== $name: $*"
  [ $dry = 0 ] || return 0
  if [ -e "$keep/$name.done" ]; then
    cat "$keep/$name.txt"
    return
  fi
  mkdir -p "$keep"
  if timeout -k 15 "${LIMIT:-300}" "$@" 2>&1 | tee "$keep/$name.txt"; then
    touch "$keep/$name.done"
  else
    echo "== FAILED: $name" | tee -a "$keep/$name.txt"
    status=1
  fi
  if [ -n "${OUT:-}" ]; then mkdir -p "$OUT" && find "$keep" -maxdepth 1 -type f -exec cp {} "$OUT" \;; fi
}

has() { [ $dry = 1 ] || command -v "$1" >/dev/null; }

build() {
  export FUSEDRNN_CUDA=1 TORCH_CUDA_ARCH_LIST=${ARCHITECTURES:-9.0} NVCC_APPEND_FLAGS=-lineinfo
  LIMIT=3600 run compile "$python" setup.py -q build_ext --inplace
  # expecttest, for one: torch's own tests of modules need it, and torch does not bring it
  run site "$python" -m pip install -q --no-deps --target "$keep/site" pytest pluggy iniconfig packaging pygments \
    hypothesis sortedcontainers attrs expecttest tqdm
  run import "$python" benchmarks/gpu.py imports
}

tiers=(block cluster grid stepwise)
[ ${#parts[@]} -gt 0 ] || parts=(first shapes profile test sanitize bench)
for part in "${parts[@]}"; do
  case $part in
    build) build ;;
    first)
      run info "$python" -m fusedrnn.info
      run clusters "$python" benchmarks/gpu.py clusters
      for tier in "${tiers[@]}"; do LIMIT=40 run "tier-$tier" env FUSEDRNN_PLAN="$tier" "$python" benchmarks/gpu.py tier; done
      ;;
    shapes) run shapes "$python" benchmarks/gpu.py shapes --out "$keep/shapes.json" ;;
    profile)
      has ncu || { echo "== profile: skipped, there is no ncu"; continue; }
      for shape in 128:forward 256:forward 1024:forward 512:training; do
        run "profile-${shape/:/-}" ncu --set full --kernel-name regex:resident -c 2 \
          "$python" benchmarks/gpu.py once --hidden "${shape%:*}" --call "${shape#*:}"
      done
      ;;
    test)
      for tier in "${tiers[@]}"; do run "test-$tier" "$python" -m pytest -q tests/test_cuda.py -k "$tier"; done
      others="$(IFS=' '; echo "${tiers[*]}")"
      run test-rest "$python" -m pytest -q -k "cuda and not ${others// / and not }" tests/test_cuda.py \
        $(grep -l 'usefixtures("device")' tests/test_*.py)
      ;;
    sanitize) # of our kernels only; calls of CUDA that torch tries in vain do not count
      has compute-sanitizer || { echo "== sanitize: skipped, there is no compute-sanitizer"; continue; }
      for tool in memcheck racecheck synccheck; do
        run $tool compute-sanitizer --tool $tool --kernel-name kns=fusedrnn --report-api-errors no --error-exitcode 1 \
          "$python" -m pytest -q tests/test_cuda.py -k 'every_tier and 19 and (padded or reset)'
      done
      ;;
    bench)
      run bench "$python" benchmarks/bench.py --device cuda --out "$keep/gpu.json"
      run plot "$python" benchmarks/plot.py "$keep/gpu.json" --out "$keep/gpu"
      ;;
  esac
done
exit $status
