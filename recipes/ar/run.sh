#!/usr/bin/env bash
# The AR baseline on your own data and weights: stages and options are those of recipes/ttt/run.sh (see its --help).
#
#   ./recipes/ar/run.sh --model /models/Qwen2.5-1.5B --train train.jsonl --dev dev.jsonl --exp exp/ar train.steps=20000

RECIPE=recipes/ar exec "$(dirname "$0")/../ttt/run.sh" "$@"
