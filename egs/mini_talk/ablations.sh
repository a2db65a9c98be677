#!/usr/bin/env bash
# A table of experiments on the small world, from nothing: corpus, codec, judge, interleaved examples, then every cell.
#
#   ./egs/mini_talk/ablations.sh --table paper_table --jobs 2       hours on a CPU; the same call goes on
#   ./egs/mini_talk/ablations.sh --table dual_stream --seeds 1 --only "ttt blocks" train.steps=200 --out exp/ablations/short
#
# All options and settings go to recipes/ablations/run.sh (see its --help).  What is made already is skipped.

set -euo pipefail
cd "$(dirname "$0")/../.."
for argument in "$@"; do
    case "$argument" in -h|--help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;; esac
done
world=${WORLD:-egs/mini_talk/exp/full}
case " $* " in
    *" --table llada_"*) ./egs/mini_talk/llada/run.sh --stop-stage 3 ;;  # codes, examples and a judge of its own
    *" --table slamomni "*) ./egs/mini_talk/slamomni/run.sh --stop-stage 4 ;;  # a text model and forms of its own
    *" --table audiolm "*) ./egs/mini_talk/audiolm/run.sh --stop-stage 3 ;;  # a corpus and four books of its own
    *" --table caches "*|*" --table parallel "*) ./egs/mini_talk/run.sh --stop-stage 3 ;;
    *)
        ./egs/mini_talk/run.sh --stop-stage 3
        ./egs/mini_talk/run.sh --stage 3 --stop-stage 3 --recipe interleaved data.dir="$world/data_interleaved" ;;
esac
exec ./recipes/ablations/run.sh "$@"
