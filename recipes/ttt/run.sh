#!/usr/bin/env bash
# TtT on your own data and weights: official JSONL records (audio spelled <|audio_N|>) or examples made by `ttt examples`.
#
#   ./recipes/ttt/run.sh --model /models/Qwen2.5-1.5B --train train.jsonl --dev dev.jsonl --exp exp/ttt train.steps=20000
#   ./recipes/ttt/run.sh --stage 3 --stop-stage 3 --exp exp/ttt --test test.jsonl    decode with the paper's settings
#   ./recipes/ttt/run.sh ... --conf official_decoding                                decode like the official script
#   ./recipes/ttt/run.sh ... --conf qwen2.5_3b --gpus 8 train.accumulate=64          the paper's settings, one node of 8 GPUs
#   NNODES=4 NODE_RANK=$i MASTER_ADDR=$host ./recipes/ttt/run.sh ... --conf qwen2.5_3b --gpus 8     node i of 4 (each runs it)
#   ./recipes/ttt/run.sh ... --dry-run          check configuration, files and global batch, estimate, print the commands
#
# Options: --model DIR --train FILE --dev FILE --test FILE --exp DIR --conf NAME --gpus N (a node) --stage N --stop-stage N
#          --global-batch N (samples an update, refuse another; 2048 for qwen2.5_*, 0: any) --dry-run --overwrite
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (29500), or SLURM's own variables; --exp where all nodes see it.
# Stage 1 is done by node 0 alone: run it first, then --stage 2 --stop-stage 3 on every node.
# Stages: 0 environment  1 tokenizer + a look at the data  2 train  3 decode  4 score + report
# Scoring speech needs codec= and judge= (see docs/recipes.md); text tasks need neither.

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=4 model="" train="" dev="" test="" exp=exp/ttt conf=base gpus=1 global_batch="" overwrite=false dry_run=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

here=${RECIPE:-recipes/ttt}  # the recipes beside this one have its stages and a conf/ of their own
config_in "$here" "$conf"
nodes=${NNODES:-${SLURM_NNODES:-1}}
case "$gpus$nodes$global_batch" in *[!0-9]*) die "--gpus, --global-batch and NNODES take numbers" ;; esac
case "$conf" in qwen2.5_*) global_batch=${global_batch:-2048} ;; *) global_batch=${global_batch:-0} ;; esac
environment
settings=(run.dir="$exp" data.tokenizer="$exp/tokenizer")
[ -z "$model" ] || settings+=(model.path="$model")
[ -z "$train" ] || settings+=(data.train="$train")
[ -z "$dev" ] || settings+=(data.dev="$dev")
[ -z "$test" ] || { name=${test##*/}; settings+=(eval.examples="[$test]" eval.out="$exp/eval/${name%%.*}"); }
settings+=("${overrides[@]}")
common=(--config "$config" "${settings[@]}")
if $overwrite; then common+=(--overwrite); fi

# Find mistakes before the first long step.
for file in "$train" "$dev" "$test"; do [ -z "$file" ] || [ -e "$file" ] || die "no such file: $file"; done
[ -z "$model" ] || check_model "$model"
estimate() { "$TTT" estimate "$config" "${settings[@]}" --gpus $((gpus * nodes)) --global-batch "$global_batch"; }
if $dry_run; then
    [ -n "$model" ] && [ -n "$train" ] || die "--dry-run: --model DIR and --train FILE are missing"
    "$TTT" train "${common[@]}" --dry-run | sed -n '/^plan:/,$p'
    estimate
    echo "commands (on each of $nodes node(s)):"
    print_commands
elif in_range 2 && [ "$global_batch" -ne 0 ]; then
    estimate
fi

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
    say 3 "decoding on $gpus process(es)"
    launch "$gpus" "$TTT" generate "${common[@]}"
fi
if in_range 4; then
    say 4 "scores and report"
    score_and_report "${common[@]}"
fi
