#!/usr/bin/env bash
# The smoke test: every stage of a real recipe on a corpus of tones, in about a minute on a CPU.
#
#   ./egs/toy/run.sh                        everything
#   ./egs/toy/run.sh --stage 4 run.seed=2   from training on; settings go to ttt untouched
#
# Options: --stage N --stop-stage N --recipe NAME --name RUN --overwrite; --recipe audiolm has its own corpus, of chords
# Stages: 0 environment  1 corpus  3 tokens + examples  4 train  5 decode  6 score + report (tones need no stage 2)

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=6 recipe=ttt name="" overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

eg=egs/toy
config_in $eg "$recipe"
case $recipe in audiolm*) what=chords maker=chords ;; *) what=tones maker=data ;; esac
world=$eg/exp/world; [ $what = tones ] || world=$eg/exp/$what
run=$eg/exp/${name:-$recipe}

environment
common=(--config "$config" run.dir="$run" data.corpus="$world/corpus" data.dir="$world/data" "${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi
test=(eval.examples="[$world/data/test.jsonl]" eval.out="$run/eval")

if in_range 1; then
    say 1 "corpus of $what"
    make_corpus "$world/corpus" "$PYTHON" $eg/local/$maker.py --seed 1
fi
if in_range 3; then
    need "$world/corpus/corpus.json" 1
    say 3 "tokens and examples"
    tokens_and_examples "${common[@]}"
fi
if in_range 4; then
    need "$world/data/train.jsonl" 3
    say 4 "training"
    "$TTT" train "${common[@]}"
fi
if in_range 5; then
    need "$run/checkpoints" 4
    say 5 "decoding"
    "$TTT" generate "${common[@]}" "${test[@]}"
fi
if in_range 6; then
    need "$run/eval/test.generations.jsonl" 5
    say 6 "scores and report"
    if [ $what = tones ]; then "$TTT" floor "${common[@]}" "${test[@]}"; fi  # chords have no words to judge
    score_and_report "${common[@]}" "${test[@]}"
fi
