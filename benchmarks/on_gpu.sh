#!/usr/bin/env bash
# What a GPU is asked for, within nine minutes: rates beside others, tests, runs, where a step goes, tables, tiles. It installs nothing.
#
#   benchmarks/on_gpu.sh                     all parts; JSON, text and summary.md in benchmarks/results/<device>/
#   benchmarks/on_gpu.sh --only tiles,loss   some parts
#   benchmarks/on_gpu.sh --output FOLDER     results elsewhere
#   benchmarks/on_gpu.sh --seconds 300       in less time: parts for which none is left are named
#   benchmarks/on_gpu.sh --rehearse          every part on a CPU, with tiny sizes
#
#   train    electra-large beside the bare loop and Trainer, in the preset's micro-batches and in automatic ones
#   tests    those marked gpu: methods and model    }
#   kernels  those of the kernels                   } side by side: they time nothing
#   runs     mtl.json by the launcher (gpu_runs.py) }
#   steps    electra-large: parts of a step, how busy the device is and where it waits; peaks against the projection
#   shapes   what a new shape of a batch costs attention
#   base     electra-base beside the bare loop and Trainer
#   loss, combine  the kernels' tables; tiles: their tiles
#
# Each part has a time limit of its own and fails alone; the most important come first. PYTHON names the interpreter.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3} REHEARSE= ONLY= OUTPUT= TOTAL=525
while [ $# -gt 0 ]; do
  case $1 in
    --rehearse) REHEARSE=1 TOTAL=3600 ;;
    --only) ONLY=,$2, && shift ;;
    --output) OUTPUT=$2 && shift ;;
    --seconds) TOTAL=$2 && shift ;;
    *) echo "on_gpu.sh: $1 is not --rehearse, --only PARTS, --output FOLDER or --seconds N" >&2 && exit 2 ;;
  esac
  shift
done
export PYTHONPATH=$PWD:$PWD/kernels:$PWD/benchmarks${PYTHONPATH:+:$PYTHONPATH}

TESTS=(-m gpu -n 14 --dist load tests/test_gpu.py tests/test_micro_batch.py)
KERNELS=(-m gpu -n 12 --dist load tests/test_kd_loss.py tests/test_combine.py tests/test_linear.py tests/test_guard.py tests/test_packing.py)
STEPS=(--preset electra-large --micro 128 --micro 32 --steps 5 --only ours --only "ours, joined") SHAPES=()
BESIDE=(--padding free --padding grouped --only "ours free" --only "ours grouped" --only "bare loop, our layers" --only Trainer
  --only "Trainer by length")
TRAIN=(--preset electra-large --micro auto --micro 32 --turns 1 --steps 2) BASE=(--preset electra-base --micro auto --turns 1 --steps 2)
TILES=(--seconds 50) TABLE=(--quick) RUNS=(--jobs 9)
if [ -n "$REHEARSE" ]; then
  export TRITON_INTERPRET=1
  TESTS=(-m gpu -n 0 -k average tests/test_gpu.py) KERNELS=(-n 0 -k operator_keeps tests/test_combine.py)
  TILES=(--rehearse) TABLE=(--quick --device cpu --repeats 2)
  STEPS=(--preset tiny --micro 16 --steps 1 --only ours --only "ours, joined") SHAPES=(--rows 2 --tokens 8 --repeats 1) RUNS=(--rehearse --steps 6)
  TRAIN=(--preset tiny --micro 16 --micro auto --turns 1 --steps 1) BASE=(--preset tiny --micro auto --turns 1 --steps 1)
fi

if [ -z "$OUTPUT" ]; then
  device=cpu && [ -n "$REHEARSE" ] || device=cuda
  OUTPUT=$("$PYTHON" -c "import measure, torch; print(measure.folder(torch.device('$device')))") || exit 1
fi
mkdir -p "$OUTPUT"
SUMMARY=$OUTPUT/summary.md
printf '| part | result | seconds | last line |\n|---|---|---|---|\n' > "$SUMMARY"

part() { # NAME SECONDS COMMAND...
  local name=$1 limit=$2 began=$SECONDS code result=ok
  shift 2
  [ -z "$ONLY" ] || [[ $ONLY == *,$name,* ]] || return 0
  [ -z "$REHEARSE" ] || limit=$((4 * limit))
  [ $limit -le $((TOTAL - SECONDS)) ] || limit=$((TOTAL - SECONDS))
  if [ $limit -lt 10 ]; then
    printf '| %s | no time left | | |\n' "$name" >> "$SUMMARY" && return
  fi
  printf '\n==== %s: %s\n' "$name" "$*"
  timeout --kill-after 10 "$limit" "$@" 2>&1 | tee "$OUTPUT/$name.txt"
  code=${PIPESTATUS[0]}
  if [ "$code" = 124 ] || [ "$code" = 137 ]; then result="over $limit s"; elif [ "$code" != 0 ]; then result="failed, $code"; fi
  printf '| %s | %s | %s | %s |\n' "$name" "$result" $((SECONDS - began)) \
    "$(grep -v '^\[rank' "$OUTPUT/$name.txt" | tail -n 1 | tr '|' '/' | cut -c 1-160)" >> "$SUMMARY" # torch takes leave last
}

train() { # NAME SECONDS OPTIONS...
  local name=$1 limit=$2
  shift 2
  part "$name" "$limit" "$PYTHON" benchmarks/bench_train.py "$@" "${BESIDE[@]}" --json "$OUTPUT/bench_train.json"
}

train train 145 "${TRAIN[@]}"
part tests 150 "$PYTHON" -m pytest -q "${TESTS[@]}" -o junit_family=legacy --junitxml "$OUTPUT/tests.xml" &
part kernels 170 nice "$PYTHON" -m pytest -q "${KERNELS[@]}" &
part runs 150 "$PYTHON" benchmarks/gpu_runs.py "${RUNS[@]}" --output "$OUTPUT" --scratch "$(mktemp -d)/runs" &
wait
part steps 90 "$PYTHON" benchmarks/bench_step.py "${STEPS[@]}" --output "$OUTPUT"
part shapes 20 "$PYTHON" benchmarks/bench_attention.py "${SHAPES[@]}" --output "$OUTPUT"
train base 50 "${BASE[@]}"
part loss 80 "$PYTHON" benchmarks/bench_kd_loss.py "${TABLE[@]}" --output "$OUTPUT"
part combine 40 "$PYTHON" benchmarks/bench_combine.py "${TABLE[@]}" --output "$OUTPUT"
part tiles 70 "$PYTHON" benchmarks/tune_kernels.py "${TILES[@]}" --output "$OUTPUT"

[ -n "$REHEARSE" ] || cp kernels/road_kernels/tiles.json "$OUTPUT"
printf '\n'
cat "$SUMMARY"
! grep -qE '^\| [a-z]+ \| (failed|over|no time)' "$SUMMARY"
