#!/usr/bin/env bash
# Text-then-speech on the corpus of mini_talk: a text model, speech added to it (TWIST), written questions, written and
# spoken answers, and what speech cost the text.
#
#   ./egs/mini_talk/slamomni/run.sh                              everything
#   ./egs/mini_talk/slamomni/run.sh --stage 5 --recipe v1.1_frozen     another recipe of conf/ from training on
#   ./egs/mini_talk/slamomni/run.sh --stage 5 --name seed2 run.seed=2  settings go to ttt untouched
#   ./egs/mini_talk/slamomni/run.sh --stop-stage 4               what ablations/slamomni.yaml needs
#
# Options: --stage N --stop-stage N --recipe NAME --name RUN --jobs N --overwrite
# Stages: 0 environment  1 corpus, codec, judge, codes (mini_talk's)  2 items, text examples  3 text model, its backbone
#         4 tokenizers, spoken examples  5 train  6 decode  7 score + report  8 text guard

set -euo pipefail
cd "$(dirname "$0")/../../.."
stage=0 stop_stage=8 recipe=v1.1 name="" jobs=2 overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

eg=egs/mini_talk/slamomni
config_in $eg "$recipe"
world=${WORLD:-egs/mini_talk/exp/full}
exp=${SLAMOMNI_EXP:-$eg/exp}
run=$exp/${name:-$recipe}

environment
force=()
if $overwrite; then force=(--overwrite); fi
sound=(codec.path="$world/codec" judge.path="$world/judge")
text=(--config "$eg/conf/text.yaml" run.dir="$exp/text_model" data.corpus="$exp/items/text" data.dir="$exp/text" "${sound[@]}"
      "${force[@]}")
form=$(sed -n 's/^data: {form: \([a-z_]*\)}.*/\1/p' "$config")
talk=(--config "$config" run.dir="$run" data.corpus="$exp/items/talk" data.dir="$exp/talk"
      data.tokenizer="$exp/tokenizer/${form:-text_then_speech_tags}" "${sound[@]}")
[ "$recipe" = random ] || talk+=(model.path="$exp/backbone")
talk+=("${overrides[@]}" "${force[@]}")

copy_codes() {  # copy_codes DIR: the codes of mini_talk, into the folder of the examples made of them
    mkdir -p "$1/codes"
    for split in train dev test; do cp "$world/data/codes/$split.jsonl" "$1/codes/"; done
}

if in_range 1; then
    ./egs/mini_talk/run.sh --stage 1 --stop-stage 3 --jobs "$jobs"
fi
if in_range 2; then
    need "$world/corpus/corpus.json" 1
    need "$world/data/codes/train.jsonl" 1
    say 2 "items and text examples"
    "$PYTHON" egs/mini_talk/local/slamomni.py --corpus "$world/corpus" --out "$exp/items"
    copy_codes "$exp/text"
    OMP_NUM_THREADS=1 "$TTT" examples "${text[@]}"
fi
if in_range 3; then
    need "$exp/text/train.jsonl" 2
    say 3 "text model"
    OMP_NUM_THREADS=$jobs "$TTT" train "${text[@]}"
    if [ ! -f "$exp/backbone/config.json" ] || $overwrite; then
        "$TTT" model text "$exp/text_model" "$exp/backbone" --overwrite
    fi
fi
if in_range 4; then
    need "$exp/backbone/config.json" 3
    say 4 "tokenizers and spoken examples"
    for form in interleaved text_then_speech text_then_speech_tags; do
        OMP_NUM_THREADS=1 "$TTT" tokenizer --config "$eg/conf/v1.1.yaml" model.path="$exp/backbone" data.form="$form" \
            data.tokenizer="$exp/tokenizer/$form" "${sound[@]}" "${force[@]}"
    done
    copy_codes "$exp/talk"
    OMP_NUM_THREADS=1 "$TTT" examples --config "$eg/conf/v1.1.yaml" data.corpus="$exp/items/talk" data.dir="$exp/talk" \
        "${sound[@]}" "${force[@]}"
    only_task text_qa "$exp/talk/test.jsonl" "$exp/talk/guard.jsonl"
fi
if in_range 5; then
    need "$exp/talk/train.jsonl" 4
    say 5 "training"
    OMP_NUM_THREADS=$jobs "$TTT" train "${talk[@]}"
fi
test=(eval.examples="[$exp/talk/test.jsonl]" eval.out="$run/eval")
if in_range 6; then
    need "$run/checkpoints" 5
    say 6 "decoding"
    OMP_NUM_THREADS=$jobs "$TTT" generate "${talk[@]}" "${test[@]}"
fi
if in_range 7; then
    need "$run/eval/test.generations.jsonl" 6
    say 7 "scores and report"
    OMP_NUM_THREADS=1 score_and_report "${talk[@]}" "${test[@]}"
fi
if in_range 8; then
    need "$run/checkpoints" 5
    need "$exp/talk/guard.jsonl" 4
    say 8 "text guard: questions that no spoken example is about, before and after speech training"
    before=("${text[@]}" eval.examples="[$exp/talk/guard.jsonl]" eval.out="$exp/text_model/guard")
    after=("${talk[@]}" eval.examples="[$exp/talk/guard.jsonl]" eval.out="$run/guard")
    case "${form:-tags}" in interleaved) ;; *) after+=(eval.speak=never) ;; esac
    for verb in generate score; do
        OMP_NUM_THREADS=1 "$TTT" $verb "${before[@]}"
        OMP_NUM_THREADS=1 "$TTT" $verb "${after[@]}"
    done
    # exit status 1: the text model lost something; the table says what
    "$TTT" eval guard "$exp/text_model/guard" "$run/guard" --out "$run/guard" || [ $? -eq 1 ]
fi
