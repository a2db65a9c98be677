#!/usr/bin/env bash
# LLaDA on the corpus of mini_talk: text by masked diffusion, text to speech over three codes a frame, and both mixed.
#
#   ./egs/mini_talk/llada/run.sh                          text to speech, from nothing to a table
#   ./egs/mini_talk/llada/run.sh --recipe text            written questions, written answers
#   ./egs/mini_talk/llada/run.sh --recipe mixed           both
#   ./egs/mini_talk/llada/run.sh --stage 4 run.seed=2     from training on; settings go to ttt untouched
#
# Options: --stage N --stop-stage N --recipe NAME --name RUN --jobs N --overwrite
# Stages: 0 environment  1 corpus (mini_talk's)  2 codec + judge  3 tokens + examples  4 train  5 decode  6 score + report

set -euo pipefail
cd "$(dirname "$0")/../../.."
stage=0 stop_stage=6 recipe=tts name="" jobs=2 overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

eg=egs/mini_talk/llada
config_in $eg "$recipe"
corpus=${WORLD:-egs/mini_talk/exp/full}/corpus
world=$eg/exp/world
run=$eg/exp/${name:-$recipe}

environment
common=(--config "$config" run.dir="$run" data.corpus="$corpus" data.dir="$world/data"
        codec.path="$world/codec" judge.path="$world/judge" "${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi

if in_range 1; then
    ./egs/mini_talk/run.sh --stage 1 --stop-stage 1 --jobs "$jobs"
fi
if in_range 2; then
    need "$corpus/corpus.json" 1
    say 2 "codec, and the judge beside it"
    start_judge "$world/judge.log" "${common[@]}"
    OMP_NUM_THREADS=1 "$TTT" fit codec "${common[@]}"
    wait_for_judge
fi
if in_range 3; then
    need "$world/codec/codec.json" 2
    say 3 "tokens and examples"
    # one tokenizer for all recipes; each learns from its own tasks' examples
    all=(--config "$eg/conf/mixed.yaml" "${common[@]:2}")
    OMP_NUM_THREADS=1 tokens_and_examples "${all[@]}"
    for task in text_qa tts; do
        for split in train dev test; do only_task $task "$world/data/$split.jsonl" "$world/data/$task.$split.jsonl"; done
    done
fi
if in_range 4; then
    need "$world/data/train.jsonl" 3
    say 4 "training"
    OMP_NUM_THREADS=$jobs "$TTT" train "${common[@]}"
fi
case "$recipe" in
    text) tests=$world/data/text_qa.test.jsonl ;;
    tts*) tests=$world/data/tts.test.jsonl ;;
    *) tests=$world/data/test.jsonl ;;
esac
test=(eval.examples="[$tests]" eval.out="$run/eval")
if in_range 5; then
    need "$run/checkpoints" 4
    say 5 "decoding"
    mkdir -p "$run/eval"
    OMP_NUM_THREADS=$jobs "$TTT" generate "${common[@]}" "${test[@]}"
fi
if in_range 6; then
    need "$run/eval/$(basename "$tests" .jsonl).generations.jsonl" 5
    need "$world/judge/judge.json" 2
    say 6 "scores and report"
    OMP_NUM_THREADS=1 "$TTT" floor "${common[@]}" "${test[@]}"
    OMP_NUM_THREADS=1 score_and_report "${common[@]}" "${test[@]}"
    say 6 "report in $run/report.md"
fi
