#!/usr/bin/env bash
# AudioLM on VALL-E on your own recordings: sound files, a corpus made of them, or lhotse cuts with stored codes.  No text, but
# with --conf valle_tts: VALL-E itself, whose recordings need transcripts.
#
#   ./recipes/audiolm/run.sh --wavs recordings --codec /models/encodec_32khz --exp exp/audiolm       wavs, encoded here
#   ./recipes/audiolm/run.sh --cuts data/tokenized --codec /models/encodec_32khz --exp exp/audiolm   codes as they are
#   ./recipes/audiolm/run.sh ... --conf ar --exp exp/ar                                              in two steps: the first,
#   ./recipes/audiolm/run.sh --stage 2 --codec ... --conf nar --exp exp/nar --data exp/ar/data train.init_from=exp/ar   and the second
#   ./recipes/audiolm/run.sh ... --stage 4 --stop-stage 4 --sounds "a.wav b.wav"                     continue sound files
#   ./recipes/audiolm/run.sh ... --conf valle_tts --stage 4 --stop-stage 4 --sounds a.wav --text "what a says. and what to say"
#
# Data, one of: --wavs DIR (folders train, dev and test of sound files)  --corpus DIR (of 'ttt data convert ... --tasks
#          continuation', its lengths as they are)  --cuts DIR (cuts_train, cuts_validation or cuts_dev, cuts_test.jsonl.gz)
# Options: --min-seconds N --max-seconds N (5 and 15: which recordings of --wavs or --cuts are taken) --convert "FIELD=VALUE ..."
#          (more fields of their converter, e.g. root=DIR) --data DIR (what stage 1 makes; EXP/data) --codec DIR --exp DIR
#          --conf NAME (base, ar, nar, masked, masked_all, fork, delay, valle_tts) --speaker DIR (an x-vector model: also compare
#          voices) --gpus N --sounds "WAV ..." --text "WORDS" (valle_tts: those of the sound file, then those to speak) --stage N
#          --stop-stage N --dry-run (print the commands) --overwrite; settings like train.lr=0.03 go to every stage
# Stages: 0 environment  1 codes, tokenizer, examples  2 train  3 decode + score the test recordings  4 continue sound files

set -euo pipefail
cd "$(dirname "$0")/../.."
stage=0 stop_stage=3 wavs="" cuts="" corpus="" min_seconds="" max_seconds="" convert="" data="" codec="" exp=exp/audiolm
conf=base speaker="" gpus=1 sounds="" text="" dry_run=false overwrite=false
. recipes/_shared/stages.sh
. recipes/_shared/launch.sh
parse_options "$@"

here=recipes/audiolm
config_in $here "$conf"
given=0
for source in "$wavs" "$cuts" "$corpus"; do [ -z "$source" ] || given=$((given + 1)); done
[ "$given" -le 1 ] || die "--wavs, --corpus and --cuts: give one of them"
[ -z "$corpus" ] || [ -z "$min_seconds$max_seconds$convert" ] ||
    die "--corpus: is taken as it is; 'ttt data convert' has chosen its lengths (min_duration_s=, max_duration_s=)"
case "$gpus" in *[!0-9]*) die "--gpus takes a number" ;; esac
task=continuation
[ "$conf" != valle_tts ] || task=zero_shot_tts
environment
data=${data:-$exp/data}
common=(--config "$config")
[ -z "$speaker" ] || common+=(--config "$here/conf/more/speaker.yaml" speaker.path="$speaker")
# The recordings themselves, where the data were made of some: what the sound of answers is compared with.
if [ -n "$wavs" ] || { [ -z "$corpus" ] && [ -d "$data/corpus" ]; }; then corpus=$data/corpus; fi
[ -z "$corpus" ] || common+=(data.corpus="$corpus")
common+=(run.dir="$exp" data.dir="$data" data.tokenizer="$data/tokenizer"
    data.train="$data/train.jsonl" data.dev="$data/dev.jsonl" eval.examples="[$data/test.jsonl]")
[ -z "$codec" ] || common+=(codec.path="$codec")
common+=("${overrides[@]}")
again=()
if $overwrite; then again=(--overwrite); fi
common+=("${again[@]}")

# converted FORMAT INPUT OUTPUT OPTIONS...: recordings of the lengths asked for; nothing to do where that is done.
converted() {
    local format=$1 input=$2 output=$3; shift 3
    # shellcheck disable=SC2086  # a list of fields
    "$TTT" data convert --from "$format" "$input" "$output" \
        min_duration_s="${min_seconds:-5}" max_duration_s="${max_seconds:-15}" $convert "${again[@]}" "$@"
}

if $dry_run; then print_commands; fi

if in_range 1; then
    say 1 "codes, tokenizer, examples"
    if [ -n "$cuts" ]; then
        $dry_run || mkdir -p "$data"
        validation=validation
        [ -f "$cuts/cuts_validation.jsonl.gz" ] || [ ! -f "$cuts/cuts_dev.jsonl.gz" ] || validation=dev  # VALL-E's name
        for pair in train:train $validation:dev test:test; do
            [ -f "$cuts/cuts_${pair%:*}.jsonl.gz" ] || die "no such file: $cuts/cuts_${pair%:*}.jsonl.gz"
            converted lhotse_codes "$cuts/cuts_${pair%:*}.jsonl.gz" "$data/${pair#*:}.jsonl"
        done
        "$TTT" tokenizer "${common[@]}"
    else
        if [ -n "$wavs" ]; then
            for split in train dev test; do
                [ -d "$wavs/$split" ] || die "no such folder: $wavs/$split"
                converted folder "$wavs/$split" "$corpus" --split "$split" --tasks "$task"
            done
        fi
        [ -n "$corpus" ] || die "stage 1: --wavs DIR, --corpus DIR or --cuts DIR is missing"
        tokens_and_examples "${common[@]}"
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
    launch "$gpus" "$TTT" generate "${common[@]}"
    score_and_report "${common[@]}"
fi
if in_range 4; then
    need "$exp/checkpoints" 2
    [ -n "$sounds" ] || die "stage 4: --sounds \"A.wav B.wav\" is missing"
    say 4 "continuing sound files"
    words=()
    [ -z "$text" ] || words=(--text "$text")
    # shellcheck disable=SC2086  # a list of files
    "$TTT" continue $sounds --run "$exp" "${words[@]}" "${again[@]}" "${overrides[@]}"
fi
