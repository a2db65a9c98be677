#!/usr/bin/env bash
# From nothing to judged speech: corpus, codec, judge, examples, TtT, decoding, scores, report.
#
#   ./egs/mini_talk/run.sh                       everything (nine to fifteen minutes on two CPU cores)
#   ./egs/mini_talk/run.sh --quick               a smaller corpus and a shorter training; a worse table
#   ./egs/mini_talk/run.sh --stage 4             from training on; finished stages are up to date, not run again
#   ./egs/mini_talk/run.sh --recipe ar --name ar another recipe of conf/ in a folder of its own
#   ./egs/mini_talk/run.sh --stage 4 run.seed=2  settings go to ttt untouched
#
# Options: --stage N --stop-stage N --quick --recipe NAME --name RUN --jobs N --overwrite
# Stages: 0 environment  1 corpus  2 codec + judge  3 tokens + examples  4 train  5 decode  6 score + report

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=6 quick=false recipe=ttt name="" jobs=2 overwrite=false
. recipes/_shared/stages.sh
parse_options "$@"

eg=egs/mini_talk
config_in $eg "$recipe"
size=full; world=$eg/exp/full
if $quick; then size=quick; world=$eg/exp/quick; fi
run=$eg/exp/${name:-$recipe}
if $quick && [ -z "$name" ]; then run=$eg/exp/$recipe-quick; fi

environment
common=(--config "$config" run.dir="$run" data.corpus="$world/corpus" data.dir="$world/data"
        codec.path="$world/codec" judge.path="$world/judge")
if $quick; then common=(--config "$config" --config "$eg/conf/quick.yaml" "${common[@]:2}"); fi
common+=("${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi

if in_range 1; then
    say 1 "corpus ($size)"
    make_corpus "$world/corpus" "$PYTHON" $eg/local/data.py --seed 1 --size $size --jobs "$jobs"
fi
if in_range 2; then
    need "$world/corpus/corpus.json" 1
    say 2 "codec, and the judge beside it"
    start_judge "$world/judge.log" "${common[@]}"  # beside stages 2 and 3; nothing before scoring needs it
    OMP_NUM_THREADS=1 "$TTT" fit codec "${common[@]}"
fi
if in_range 3; then
    need "$world/codec/codec.json" 2
    say 3 "tokens and examples"
    OMP_NUM_THREADS=1 tokens_and_examples "${common[@]}"
fi
wait_for_judge
if in_range 4; then
    need "$world/data/train.jsonl" 3
    say 4 "training"
    OMP_NUM_THREADS=$jobs "$TTT" train "${common[@]}"
fi
if in_range 5; then
    need "$run/checkpoints" 4
    say 5 "decoding (both test sets, side by side) and the codec's floor"
    mkdir -p "$run/eval"
    OMP_NUM_THREADS=1 "$TTT" generate "${common[@]}" eval.examples="[$world/data/test.jsonl]" &
    first=$!
    OMP_NUM_THREADS=1 "$TTT" generate "${common[@]}" eval.examples="[$world/data/test_unseen_voice.jsonl]" \
        || die "stage 5: decoding of the unseen voices failed (see above)"
    wait $first || die "stage 5: decoding of the test set failed (see above)"
fi
if in_range 6; then
    need "$run/eval/test.generations.jsonl" 5
    need "$world/judge/judge.json" 2
    say 6 "scores and report"
    both=(eval.examples="[$world/data/test.jsonl,$world/data/test_unseen_voice.jsonl]" eval.out="$run/eval")
    OMP_NUM_THREADS=1 "$TTT" floor "${common[@]}" "${both[@]}" &
    first=$!
    OMP_NUM_THREADS=1 "$TTT" score "${common[@]}" "${both[@]}" || die "stage 6: scoring failed (see above)"
    wait $first || die "stage 6: measuring the codec's floor failed (see above)"
    "$TTT" report "${common[@]}" "${both[@]}"
    say 6 "report in $run/report.md"
fi
