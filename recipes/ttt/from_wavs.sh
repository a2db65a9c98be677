#!/usr/bin/env bash
# TtT from a folder of recordings to a spoken answer, with published weights in local folders (docs/real_weights.md).
#
#   ./recipes/ttt/from_wavs.sh --wavs WAVS --test-wavs TEST --model Qwen2.5-1.5B --codec glm-4-voice-tokenizer \
#       --decoder glm-4-voice-decoder --exp exp/mine
#
# WAVS, TEST: sound files (any rate, any number of channels) with a text file of the same name beside each; with --from
# NAME another layout (`ttt list converter`).  Nothing of TEST is trained on.
# Options: --wavs DIR --test-wavs DIR --from NAME --model DIR --codec DIR --decoder DIR --judge DIR (a Whisper model)
#          --exp DIR --conf NAME --gpus N --jobs N (processes that encode) --stage N --stop-stage N
#          --dry-run (print the commands) --overwrite; settings as section.key=value
# Stages: 0 environment  1 tokenizer of the backbone with audio tokens (opens the folders of weights), corpus
#         2 recordings to tokens  3 examples  4 train  5 answers, with their sound  6 scores and report (with --judge)

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=6 wavs="" test_wavs="" from=folder model="" codec="" decoder="" judge="" exp=exp/from_wavs conf=from_wavs
gpus=1 jobs=1 dry_run=false overwrite=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

config_in recipes/ttt "$conf"
case "$gpus$jobs" in *[!0-9]*) die "--gpus and --jobs take numbers" ;; esac
for option in wavs test_wavs model codec decoder; do
    [ -n "${!option}" ] || die "--${option//_/-} DIR is missing (see --help)"
    [ -d "${!option}" ] || die "--${option//_/-}: no such folder: ${!option}"
done
[ "$(realpath "$wavs")" != "$(realpath "$test_wavs")" ] || die "--wavs and --test-wavs: the same folder; nothing of TEST may be trained on"
[ -z "$judge" ] || [ -d "$judge" ] || die "--judge: no such folder: $judge"
check_model "$model"
environment
more=()
if $overwrite; then more+=(--overwrite); fi
common=(--config "$config" run.dir="$exp/run" data.corpus="$exp/corpus" data.dir="$exp/data" data.tokenizer="$exp/tokenizer"
    data.train="$exp/data/train.jsonl" data.dev="$exp/data/test.jsonl" data.jobs="$jobs" model.path="$model"
    codec.path="$codec" codec.decoder="$decoder" eval.examples="[$exp/data/test.jsonl]" "${overrides[@]}" "${more[@]}")

if $dry_run; then print_commands; fi

if in_range 1; then
    say 1 "tokenizer of the backbone with audio tokens, corpus"
    "$TTT" tokenizer "${common[@]}"  # first: it finds what is wrong with the folders of weights
    "$TTT" data convert --from "$from" "$wavs" "$exp/corpus" --split train --tasks asr tts "${more[@]}"
    "$TTT" data convert --from "$from" "$test_wavs" "$exp/corpus" --split test --tasks asr tts "${more[@]}"
fi
if in_range 2; then
    need "$exp/corpus/test.jsonl" 1
    say 2 "recordings to tokens"
    "$TTT" tokenize "${common[@]}"
fi
if in_range 3; then
    need "$exp/data/codes/test.jsonl" 2
    say 3 "examples"
    "$TTT" examples "${common[@]}"
fi
if in_range 4; then
    need "$exp/data/train.jsonl" 3
    say 4 "training on $gpus process(es)"
    launch "$gpus" "$TTT" train "${common[@]}"
fi
if in_range 5; then
    need "$exp/run/checkpoints" 4
    say 5 "answers"
    launch "$gpus" "$TTT" generate --wav "${common[@]}"
fi
if in_range 6; then
    need "$exp/run/eval/test.generations.jsonl" 5
    if [ -n "$judge" ]; then
        say 6 "scores and report"
        score_and_report "${common[@]}" judge.name=transformers_asr judge.path="$judge"
    else
        echo "no --judge DIR: nothing is scored; listen to $exp/run/eval/test.wavs"
    fi
fi
