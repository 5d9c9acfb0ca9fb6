#!/usr/bin/env bash
# What a GPU is asked for, within ten minutes: tests, tiles, tables. It installs nothing.
#
#   benchmarks/on_gpu.sh                     all parts; JSON and summary.md in benchmarks/results/<device>/
#   benchmarks/on_gpu.sh --only tiles,loss   some parts
#   benchmarks/on_gpu.sh --output FOLDER     results elsewhere
#   benchmarks/on_gpu.sh --rehearse          every part on a CPU, with tiny sizes
#
# Each part has a time limit of its own and fails alone; the most important come first. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} REHEARSE= ONLY= OUTPUT=
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) REHEARSE=1 ;;
    --only) ONLY=,$2, && shift ;;
    --output) OUTPUT=$2 && shift ;;
    *) echo "on_gpu.sh: $1 is not --rehearse, --only PARTS or --output FOLDER" >&2 && exit 2 ;;
  esac
  shift
done
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}

TESTS=(-m gpu -n 14 --dist load tests/test_kd_loss.py tests/test_combine.py tests/test_linear.py tests/test_guard.py)
TILES=(--seconds 130) TABLE=(--quick) STEPS=(--preset electra-large --micro 32 --micro 128) RUNS=()
if [ -n "$REHEARSE" ]; then
  export TRITON_INTERPRET=1
  TESTS=(-n 0 -k operator_keeps tests/test_combine.py) TILES=(--rehearse) TABLE=(--quick --device cpu --repeats 2)
  STEPS=(--preset tiny --micro 16 --steps 1) RUNS=(--rehearse --steps 6)
fi

if [ -z "$OUTPUT" ]; then
  device=cpu && [ -n "$REHEARSE" ] || device=cuda
  OUTPUT=$("$PYTHON" -c "import measure, torch; print(measure.folder(torch.device('$device')))") || exit 1
fi
mkdir -p "$OUTPUT"
SUMMARY=$OUTPUT/summary.md LOG=$OUTPUT/log.txt FAILED=0
printf '| part | result | seconds | last line |\n|---|---|---|---|\n' > "$SUMMARY"
: > "$LOG"

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS code result=ok
  shift 2
  [ -z "$ONLY" ] || [[ $ONLY == *,$name,* ]] || return 0
  printf '\n==== %s: %s\n' "$name" "$*" | tee -a "$LOG"
  timeout --kill-after 10 "$limit" "$@" 2>&1 | tee -a "$LOG"
  code=${PIPESTATUS[0]}
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then result="over $limit s"; elif [ "$code" != 0 ]; then result="failed, $code"; fi
  [ "$code" = 0 ] || FAILED=1
  printf '| %s | %s | %s | %s |\n' "$name" "$result" $((SECONDS - began)) \
    "$(tail -n 1 "$LOG" | tr '|' '/' | cut -c 1-120)" >> "$SUMMARY"
}

part tests 200 "$PYTHON" -m pytest -q "${TESTS[@]}"
part tiles 170 "$PYTHON" benchmarks/tune_kernels.py "${TILES[@]}" --output "$OUTPUT"
part loss 150 "$PYTHON" benchmarks/bench_kd_loss.py "${TABLE[@]}" --output "$OUTPUT"
part combine 60 "$PYTHON" benchmarks/bench_combine.py "${TABLE[@]}" --output "$OUTPUT"
part steps 240 "$PYTHON" benchmarks/bench_step.py "${STEPS[@]}" --output "$OUTPUT"
part runs 200 "$PYTHON" benchmarks/gpu_runs.py "${RUNS[@]}" --output "$OUTPUT" --scratch "$(mktemp -d)/runs"

[ -n "$REHEARSE" ] || cp kernels/road_kernels/tiles.json "$OUTPUT"
printf '\n'
cat "$SUMMARY"
exit $FAILED
