#!/usr/bin/env bash
# Audio continuation on the voices of mini_talk: the model hears the beginning of a series and continues it in the same voice.
#
#   ./egs/mini_talk/audiolm/run.sh                          everything (about twenty minutes of one CPU core)
#   ./egs/mini_talk/audiolm/run.sh --recipe masked          upper codebooks by masked diffusion, not one after the other
#   ./egs/mini_talk/audiolm/run.sh --stage 4 run.seed=2     from training on; settings go to ttt untouched
#
# Options: --stage N --stop-stage N --recipe NAME --name RUN --overwrite
# Stages: 0 environment  1 corpus of series  2 codec, judge, speaker encoder  3 tokens + examples  4 train  5 continue
#         6 score + report

set -euo pipefail
cd "$(dirname "$0")/../../.."
stage=0 stop_stage=6 recipe=stages name="" overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

eg=egs/mini_talk/audiolm
config_in $eg "$recipe"
world=${WORLD:-$eg/exp/world}  # tests put another here
run=$eg/exp/${name:-$recipe}

environment
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
common=(--config "$config" run.dir="$run" data.corpus="$world/corpus" data.dir="$world/data" codec.path="$world/codec"
        judge.path="$world/judge" speaker.path="$world/speaker" "${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi

if in_range 1; then
    say 1 "corpus of series"
    make_corpus "$world/corpus" "$PYTHON" egs/mini_talk/local/series.py --seed 3 --size full
fi
if in_range 2; then
    need "$world/corpus/corpus.json" 1
    say 2 "codec, judge and speaker encoder, each fitted on the corpus' recordings"
    "$TTT" fit codec "${common[@]}"
    "$TTT" fit speaker "${common[@]}"
    "$TTT" fit judge "${common[@]}"
fi
if in_range 3; then
    need "$world/codec/codec.json" 2
    say 3 "tokens and examples"
    tokens_and_examples "${common[@]}"
fi
if in_range 4; then
    need "$world/data/train.jsonl" 3
    say 4 "training"
    "$TTT" train "${common[@]}"
fi
both=(eval.examples="[$world/data/test.jsonl,$world/data/test_unseen_voice.jsonl]" eval.out="$run/eval")
if in_range 5; then
    need "$run/checkpoints" 4
    say 5 "continuations of unseen texts, in known voices and in others"
    "$TTT" generate "${common[@]}" "${both[@]}"
fi
if in_range 6; then
    need "$run/eval/test.generations.jsonl" 5
    need "$world/judge/judge.json" 2
    say 6 "scores and report"
    score_and_report "${common[@]}" "${both[@]}"
    say 6 "report in $run/report.md"
fi
