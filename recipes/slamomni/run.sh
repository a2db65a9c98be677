#!/usr/bin/env bash
# Text-then-speech SFT of a text model (SLAM-Omni's data): written question in, written and spoken answer out.
#
#   ./recipes/slamomni/run.sh --model /models/Qwen3-0.6B --data "/data/train-*.parquet" --exp exp/slamomni
#   ./recipes/slamomni/run.sh ... --limit 500 train.save_every_steps=100                 a look: the first 500 rows
#   ./recipes/slamomni/run.sh ... --conf v1.1_frozen --gpus 8                            text rows frozen, one node of 8
#   ./recipes/slamomni/run.sh ... --stage 5 --guard "mmlu quiz.yaml" --mmlu /data/mmlu-redux        what did it cost the text?
#   ./recipes/slamomni/run.sh ... --stage 4 --test test.jsonl codec.name=cosyvoice codec.path=CosyVoice-300M codec.prompt=voice.wav
#   ./recipes/slamomni/run.sh ... --dry-run                                              print the commands, write nothing
#
# Options: --model DIR --data GLOB --exp DIR --conf NAME --test FILE --guard "TASK ..." --mmlu DIR --eval-ratio R --limit N --gpus N
#          --stage N --stop-stage N --dry-run --overwrite
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR, MASTER_PORT (29500); stages 1 and 2 once, on one of them.
# Stages: 0 environment  1 convert + split  2 tokenizer, lengths, a look  3 train  4 decode (+ score)  5 text guard

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=5 model="" data="" exp=exp/slamomni conf=v1.1 test="" guard="" mmlu="" eval_ratio=0.15 limit=0 gpus=1
dry_run=false overwrite=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

here=recipes/slamomni
config_in $here "$conf"
case "$gpus$limit" in *[!0-9]*) die "--gpus and --limit take numbers" ;; esac
environment

# Find mistakes before the first long step.
[ -n "$model" ] || die "--model DIR is missing (a folder with config.json, tokenizer.json and safetensors)"
check_model "$model"
[ -z "$test" ] || [ -f "$test" ] || die "no such file: $test"
[ -z "$mmlu" ] || [ -d "$mmlu" ] || die "no such folder: $mmlu"
if in_range 1; then
    [ -n "$data" ] || die "stage 1: --data GLOB is missing (SLAM-Omni's parquet files)"
    compgen -G "$data" > /dev/null || die "--data $data: no such file"
fi

settings=(run.dir="$exp" model.path="$model" data.tokenizer="$exp/tokenizer" data.train="$exp/data/train.jsonl"
          data.dev="$exp/data/eval.jsonl")
[ -z "$test" ] || settings+=(eval.examples="[$test]")
settings+=("${overrides[@]}")
common=(--config "$config" "${settings[@]}")
force=()
if $overwrite; then force=(--overwrite); fi
if $dry_run; then
    "$TTT" train "${common[@]}" --dry-run | sed -n '/^plan:/,$p'
    echo "commands:"
    print_commands
fi

if in_range 1; then
    say 1 "convert and split"
    $dry_run || mkdir -p "$exp/data"
    "$TTT" data convert --from slam_omni "$data" "$exp/data/all.jsonl" --skip-bad --limit "$limit" "${force[@]}"
    "$TTT" data split "$exp/data/all.jsonl" --train "$exp/data/train.jsonl" --eval "$exp/data/eval.jsonl" \
        --eval-ratio "$eval_ratio" --seed 42 "${force[@]}"
fi
if in_range 2; then
    need "$exp/data/train.jsonl" 1
    say 2 "tokenizer, lengths, and the first example"
    "$TTT" tokenizer "${common[@]}" "${force[@]}"
    "$TTT" data stats "$exp/data/train.jsonl" --tokenizer "$exp/tokenizer" --context 1024 2048 --png "$exp/data/lengths.png"
    "$TTT" data show "$exp/data/train.jsonl" --tokenizer "$exp/tokenizer"
fi
if in_range 3; then
    need "$exp/tokenizer/tokenizer.json" 2
    say 3 "training on $gpus process(es)"
    launch "$gpus" "$TTT" train "${common[@]}" "${force[@]}"
fi
if in_range 4; then
    need "$exp/checkpoints" 3
    if [ -z "$test" ]; then echo "run.sh: no --test FILE: nothing to decode (talk to it: ttt chat $exp)"; else
        say 4 "decoding and scores"
        launch "$gpus" "$TTT" generate "${common[@]}" "${force[@]}"
        "$TTT" score "${common[@]}" "${force[@]}"
    fi
fi
if in_range 5; then
    need "$exp/checkpoints" 3
    if [ -z "$guard$mmlu" ]; then echo "run.sh: neither --guard nor --mmlu: the text model is not asked"; else say 5 "text guard"; fi
    # exit status 1: the text model lost something; the table says what
    if [ -n "$guard" ]; then
        read -ra tasks <<< "$guard"
        "$TTT" eval guard "$model" "$exp" --tasks "${tasks[@]}" --chat --template qwen3 --out "$exp/guard" "${force[@]}" \
            || [ $? -eq 1 ]
    fi
    if [ -n "$mmlu" ]; then
        for side in before after; do
            asked=$exp; [ $side = after ] || asked=$model
            "$TTT" eval mmlu-redux "$mmlu" --model "$asked" --template qwen3 --out "$exp/guard/mmlu-redux/$side" "${force[@]}"
        done
        "$TTT" eval guard "$exp/guard/mmlu-redux/before" "$exp/guard/mmlu-redux/after" --out "$exp/guard/mmlu-redux" || [ $? -eq 1 ]
    fi
fi
