#!/usr/bin/env bash
# The NAR baseline on your own data and weights: stages and options are those of recipes/ttt/run.sh (see its --help).
#
#   ./recipes/nar/run.sh --model /models/Qwen2.5-1.5B --train train.jsonl --dev dev.jsonl --exp exp/nar train.steps=20000

RECIPE=recipes/nar exec "$(dirname "$0")/../ttt/run.sh" "$@"
