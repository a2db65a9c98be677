#!/usr/bin/env bash
# A table of experiments on mini_talk: every row under every seed, with intervals, tests and plots.
#
#   ./egs/mini_talk/ablations.sh --table paper_table --jobs 2    everything (hours on a CPU; the same call continues)
#   ./egs/mini_talk/ablations.sh --table samplers --seeds 1      one seed
#   ./egs/mini_talk/ablations.sh --table schedules --stage 2 --dry-run      check every cell, print what would run
#   ./egs/mini_talk/ablations.sh --table dual_stream --only "ttt blocks" train.steps=200 --out exp/ablations/short
#   ./egs/mini_talk/ablations.sh --table llada_samplers --trainings exp/ablations/llada_mixed      reuse trainings
#
# Options: --table NAME (of ablations/) --seeds N --jobs N --only "ROW ROW" --trainings "DIR DIR" --out DIR --dry-run
#          --overwrite --stage N --stop-stage N; settings like train.steps=200 go to every cell
# Stages: 0 environment  1 what the table needs (its key `needs`; finished parts are skipped)  2 the table

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=1 stop_stage=2 table="" seeds="" jobs="" only="" trainings="" out="" dry_run=false overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

tables=${TABLES:-egs/mini_talk/ablations}  # tests put another folder here
[ -n "$table" ] || die "--table is missing; there are: $(cd "$tables" && echo ./*.yaml)"
[ -f "$tables/$table.yaml" ] || die "no table $tables/$table.yaml; there are: $(cd "$tables" && echo ./*.yaml)"
environment

if in_range 1; then
    say 1 "what table $table needs"
    sed -n '/^needs:/,/^[^ ]/s/^  - //p' "$tables/$table.yaml" | while read -r command; do
        echo "$command"
        $dry_run || bash -c "$command" < /dev/null
    done
fi
if in_range 2; then
    arguments=("$tables/$table.yaml" "${overrides[@]}")
    if [ -n "$seeds" ]; then arguments+=(--seeds "$seeds"); fi
    if [ -n "$jobs" ]; then arguments+=(--jobs "$jobs"); fi
    if [ -n "$only" ]; then read -ra rows <<< "$only"; arguments+=(--only "${rows[@]}"); fi
    if [ -n "$trainings" ]; then read -ra folders <<< "$trainings"; arguments+=(--trainings "${folders[@]}"); fi
    if [ -n "$out" ]; then arguments+=(--out "$out"); fi
    if $dry_run; then arguments+=(--dry-run); fi
    if $overwrite; then arguments+=(--overwrite); fi
    say 2 "table $table"
    "$TTT" ablate "${arguments[@]}"
fi
