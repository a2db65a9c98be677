#!/usr/bin/env bash
# TtT on your own data and weights: official JSONL records (audio spelled <|audio_N|>) or examples made by `ttt examples`.
#
#   ./recipes/ttt/run.sh --model /models/Qwen2.5-1.5B --train train.jsonl --dev dev.jsonl --exp exp/ttt train.steps=20000
#   ./recipes/ttt/run.sh --stage 3 --stop-stage 3 --exp exp/ttt --test test.jsonl    decode with the paper's settings
#   ./recipes/ttt/run.sh ... --conf official_decoding                                decode like the official script
#
# Options: --model DIR --train FILE --dev FILE --test FILE --exp DIR --conf NAME --gpus N --stage N --stop-stage N --overwrite
# Stages: 0 environment  1 tokenizer + a look at the data  2 train  3 decode  4 score + report
# Scoring speech needs codec= and judge= (see docs/recipes.md); text tasks need neither.

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=4 model="" train="" dev="" test="" exp=exp/ttt conf=base gpus=1 overwrite=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

[ -f "recipes/ttt/conf/$conf.yaml" ] || die "no recipes/ttt/conf/$conf.yaml; there are: $(cd recipes/ttt/conf && echo ./*.yaml)"
if in_range 0; then say 0 "environment"; bash tools/env.sh; fi
need .venv/bin/ttt 0
export PATH="$PWD/.venv/bin:$PATH" TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
TTT=${TTT:-ttt}
common=(--config "recipes/ttt/conf/$conf.yaml" run.dir="$exp" data.tokenizer="$exp/tokenizer")
[ -z "$model" ] || common+=(model.path="$model")
[ -z "$train" ] || common+=(data.train="$train")
[ -z "$dev" ] || common+=(data.dev="$dev")
[ -z "$test" ] || common+=(eval.examples="[$test]")
common+=("${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi

if in_range 1; then
    [ -n "$model" ] || die "stage 1: --model DIR is missing (a folder with config.json, tokenizer.json and safetensors)"
    [ -n "$train" ] || die "stage 1: --train FILE is missing"
    need "$train" 1
    say 1 "tokenizer, and the first training example"
    "$TTT" tokenizer "${common[@]}"
    "$TTT" show "${common[@]}"
fi
if in_range 2; then
    [ -n "$train" ] || die "stage 2: --train FILE is missing"
    need "$exp/tokenizer/tokenizer.json" 1
    say 2 "training on $gpus process(es)"
    launch "$gpus" "$TTT" train "${common[@]}"
fi
if in_range 3; then
    [ -n "$test" ] || { echo "run.sh: no --test FILE: nothing to decode"; exit 0; }
    need "$exp/checkpoints" 2
    say 3 "decoding"
    "$TTT" generate "${common[@]}"
fi
if in_range 4; then
    say 4 "scores and report"
    "$TTT" score "${common[@]}"
    "$TTT" report "${common[@]}"
fi
