#!/usr/bin/env bash
# AudioLM on VALL-E on your own recordings: lhotse cuts with stored codes, or a corpus folder of wavs.
#
#   ./recipes/audiolm/run.sh --cuts data/tokenized --codec /models/encodec_32khz --exp exp/audiolm
#   ./recipes/audiolm/run.sh --corpus corpus/ --codec /models/encodec_32khz --exp exp/audiolm     wavs, encoded here
#   ./recipes/audiolm/run.sh ... --conf ar --exp exp/ar; ./recipes/audiolm/run.sh ... --conf nar --exp exp/nar train.init_from=exp/ar
#   ./recipes/audiolm/run.sh ... --stage 4 --stop-stage 4 --sounds "a.wav b.wav"                  continue sound files
#
# Options: --cuts DIR (cuts_train.jsonl.gz, cuts_validation.jsonl.gz, cuts_test.jsonl.gz) --corpus DIR --codec DIR --exp DIR
#          --conf NAME (base, ar, nar, masked, masked_all, fork) --gpus N --sounds "WAV ..." --stage N --stop-stage N --overwrite
# Stages: 0 environment  1 codes, tokenizer, examples  2 train  3 decode + score the test recordings  4 continue sound files

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=3 cuts="" corpus="" codec="" exp=exp/audiolm conf=base gpus=1 sounds="" overwrite=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

here=recipes/audiolm
[ -f "$here/conf/$conf.yaml" ] || die "no $here/conf/$conf.yaml; there are: $(cd "$here/conf" && echo ./*.yaml)"
[ -z "$cuts" ] || [ -z "$corpus" ] || die "--cuts and --corpus: give one of them"
case "$gpus" in *[!0-9]*) die "--gpus takes a number" ;; esac
environment
data=$exp/data
common=(--config "$here/conf/$conf.yaml" run.dir="$exp" data.dir="$data" data.tokenizer="$data/tokenizer"
    data.train="$data/train.jsonl" data.dev="$data/dev.jsonl" eval.examples="[$data/test.jsonl]")
[ -z "$codec" ] || common+=(codec.path="$codec")
common+=("${overrides[@]}")
if $overwrite; then common+=(--overwrite); fi

if in_range 1; then
    say 1 "codes, tokenizer, examples"
    if [ -n "$cuts" ]; then
        mkdir -p "$data"
        for pair in train:train validation:dev test:test; do
            [ -f "$cuts/cuts_${pair%:*}.jsonl.gz" ] || die "no such file: $cuts/cuts_${pair%:*}.jsonl.gz"
            [ -f "$data/${pair#*:}.jsonl" ] && ! $overwrite || "$TTT" data convert --from lhotse_codes \
                "$cuts/cuts_${pair%:*}.jsonl.gz" "$data/${pair#*:}.jsonl" min_duration_s=5 max_duration_s=15 --overwrite
        done
        "$TTT" tokenizer "${common[@]}"
    else
        [ -n "$corpus" ] || die "stage 1: --cuts DIR or --corpus DIR is missing"
        "$TTT" tokenize "${common[@]}" data.corpus="$corpus"
        "$TTT" examples "${common[@]}" data.corpus="$corpus"
    fi
fi
if in_range 2; then
    need "$data/train.jsonl" 1
    say 2 "training on $gpus process(es)"
    launch "$gpus" "$TTT" train "${common[@]}"
fi
if in_range 3; then
    need "$exp/checkpoints" 2
    say 3 "continuations of the test recordings, and their scores"
    "$TTT" generate "${common[@]}"
    "$TTT" score "${common[@]}"
    "$TTT" report "${common[@]}"
fi
if in_range 4; then
    need "$exp/checkpoints" 2
    [ -n "$sounds" ] || die "stage 4: --sounds \"A.wav B.wav\" is missing"
    say 4 "continuing sound files"
    # shellcheck disable=SC2086  # a list of files
    "$TTT" continue $sounds --run "$exp" "${overrides[@]}"
fi
