#!/usr/bin/env bash
# One table of experiments on the small world: every row under every seed, intervals, tests, plots.
#
#   ./recipes/ablations/run.sh --table paper_table              everything (hours on a CPU; the same call goes on)
#   ./recipes/ablations/run.sh --table samplers --seeds 1       one seed
#   ./recipes/ablations/run.sh --table schedules --dry-run      check every cell and say what would run
#   ./recipes/ablations/run.sh --table schedules train.steps=200 --out exp/ablations/short
#   ./recipes/ablations/run.sh --table llada_samplers --trainings exp/ablations/llada_mixed     the same training is used again
#
# Options: --table NAME --seeds N --jobs N --only "ROW ROW" --trainings "DIR DIR" --out DIR --dry-run --overwrite --stage N --stop-stage N
# Stages: 0 environment  1 the table (egs/mini_talk/run.sh makes corpus, codec, judge and examples before)

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=1 stop_stage=1 table="" seeds="" jobs="" only="" trainings="" out="" dry_run=false overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

here=recipes/ablations
[ -n "$table" ] || die "--table is missing; there are: $(cd $here && echo ./*.yaml)"
[ -f "$here/$table.yaml" ] || die "no table $here/$table.yaml; there are: $(cd $here && echo ./*.yaml)"
world=${WORLD:-egs/mini_talk/exp/full}  # tests put another here

if in_range 0; then say 0 "environment"; bash tools/env.sh; fi
need .venv/bin/ttt 0
export PATH="$PWD/.venv/bin:$PATH"
TTT=${TTT:-ttt}  # tests put a recorder here

made() { [ -e "$1" ] || die "missing $1: run ./egs/mini_talk/run.sh $2"; }

if in_range 1; then
    case "$table" in
        llada_*)  # codes, examples and a judge of its own
            parts=${LLADA_WORLD:-egs/mini_talk/llada/exp/world}/data/tts.train.jsonl
            [ -e "$parts" ] || die "missing $parts: run ./egs/mini_talk/llada/run.sh --stop-stage 3" ;;
        slamomni|audiolm)
            last=3 folder=egs/mini_talk/audiolm/exp/world/data
            if [ "$table" = slamomni ]; then last=4 folder=egs/mini_talk/slamomni/exp/backbone; fi
            [ -e "$folder" ] || die "missing $folder: run ./egs/mini_talk/$table/run.sh --stop-stage $last" ;;
        caches|parallel)
            made "$world/data/train.jsonl" "--stop-stage 3" ;;
        *)
            made "$world/corpus/corpus.json" "--stage 1 --stop-stage 1"
            made "$world/codec/codec.json" "--stage 2 --stop-stage 2"
            made "$world/judge/judge.json" "--stage 2 --stop-stage 2"
            made "$world/data_interleaved/train.jsonl" \
                "--stage 3 --stop-stage 3 --recipe interleaved data.dir=$world/data_interleaved" ;;
    esac
    arguments=("$here/$table.yaml" "${overrides[@]}")
    if [ -n "$seeds" ]; then arguments+=(--seeds "$seeds"); fi
    if [ -n "$jobs" ]; then arguments+=(--jobs "$jobs"); fi
    if [ -n "$only" ]; then read -ra rows <<< "$only"; arguments+=(--only "${rows[@]}"); fi
    if [ -n "$trainings" ]; then read -ra folders <<< "$trainings"; arguments+=(--trainings "${folders[@]}"); fi
    if [ -n "$out" ]; then arguments+=(--out "$out"); fi
    if $dry_run; then arguments+=(--dry-run); fi
    if $overwrite; then arguments+=(--overwrite); fi
    say 1 "table $table"
    "$TTT" ablate "${arguments[@]}"
fi
