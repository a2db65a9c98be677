#!/usr/bin/env bash
# The dual-stream objective on your own data and weights: stages and options are those of recipes/ttt/run.sh (see its --help).
#
#   ./recipes/dual_stream/run.sh --model /models/Qwen2.5-1.5B --train train.jsonl --dev dev.jsonl --exp exp/dual_stream train.steps=20000

RECIPE=recipes/dual_stream exec "$(dirname "$0")/../ttt/run.sh" "$@"
