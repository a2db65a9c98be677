# Shared by every run.sh: options, stage ranges, missing inputs, stages that several have.  Sourced, not run.
#
#   . recipes/_shared/stages.sh; parse_options "$@"; environment
#   if in_range 3; then need path 2 "what it is"; ...; fi
#
# Options set declared variables only (--stage 3, --stop-stage 4, --quick); key=value goes to `ttt` untouched.

overrides=()

die() { echo "run.sh: $*" >&2; exit 2; }

parse_options() {
    while [ $# -gt 0 ]; do
        case "$1" in
            -h|--help) sed -n '2,/^$/s/^# \{0,1\}//p' "$0"; exit 0 ;;
            --*)
                local _option=${1#--}; _option=${_option//-/_}  # underscore: no recipe declares such a variable
                [ -n "${!_option+set}" ] || die "unknown option $1 (see --help)"
                if [ "${!_option}" = false ] || [ "${!_option}" = true ]; then
                    printf -v "$_option" %s true; shift
                else
                    [ $# -ge 2 ] || die "option $1 needs a value"
                    printf -v "$_option" %s "$2"; shift 2
                fi ;;
            *=*) overrides+=("$1"); shift ;;
            *) die "unknown argument $1 (options start with --, settings look like section.key=value)" ;;
        esac
    done
    case "$stage$stop_stage" in *[!0-9]*) die "--stage and --stop-stage take numbers" ;; esac
    [ "$stage" -le "$stop_stage" ] || die "--stage $stage is after --stop-stage $stop_stage"
}

# in_range N: is stage N asked for?
in_range() { [ "$stage" -le "$1" ] && [ "$1" -le "$stop_stage" ]; }

# need PATH STAGE: stop unless PATH is there, naming the stage that makes it.
need() { [ -e "$1" ] || die "missing $1: run stage $2 first ($0 --stage $2)"; }

# environment: stage 0 (not with --dry-run), then ttt on the path and the commands TTT and PYTHON; tests set these to recorders.
# A recipe of one's own ('ttt new recipe') is not in the source tree and takes ttt from the path.
environment() {
    if [ -n "${own_recipe:-}" ]; then
        command -v "${TTT:-ttt}" > /dev/null || die "no ttt on the path: activate the environment that it is installed in"
    else
        if in_range 0 && [ "${dry_run:-false}" = false ]; then say 0 "environment"; bash tools/env.sh; fi
        need .venv/bin/ttt 0
        export PATH="$PWD/.venv/bin:$PATH"
    fi
    export TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
    TTT=${TTT:-ttt} PYTHON=${PYTHON:-python}
}

# config_in DIR NAME: sets config, the file NAME.yaml of DIR/conf.
config_in() {
    config=$1/conf/$2.yaml
    [ -f "$config" ] || die "no $config; there are: $(cd "$1/conf" && echo ./*.yaml)"
}

# check_model DIR: stop unless it holds a backbone.
check_model() {
    local file
    for file in config.json tokenizer.json; do [ -f "$1/$file" ] || die "--model $1: $file is missing"; done
}

# print_commands: from here on ttt and torchrun are printed, not run (--dry-run).
print_commands() {
    print_command() { printf ' '; printf ' %q' "$@"; echo; }
    torchrun() { print_command torchrun "$@"; }
    ttt() { print_command ttt "$@"; }
    TTT=ttt
    need() { :; }
    say() { echo "# stage $1: $2"; }
}

# make_corpus DIR COMMAND...: run COMMAND --out DIR unless the corpus is there.
make_corpus() {
    local folder=$1; shift
    if [ -f "$folder/corpus.json" ]; then echo "corpus: up to date ($folder)"; else "$@" --out "$folder"; fi
}

# tokens_and_examples ARGUMENTS...: codes of all recordings, the tokenizer, the examples.
tokens_and_examples() {
    "$TTT" tokenize "$@"
    "$TTT" examples "$@"
}

# score_and_report ARGUMENTS...: result card and report.
score_and_report() {
    "$TTT" score "$@"
    "$TTT" report "$@"
}

# only_task TASK FROM TO: the examples of one task, written beside TO and then renamed.
only_task() {
    sed -n "/^{\"uid\": \"[^\"]*\", \"task\": \"$1\"/p" "$2" > "$3.part"
    mv "$3.part" "$3"
}

# start_judge LOG ARGUMENTS...: fit the judge in the background; call wait_for_judge before its first use.
start_judge() {
    judge_log=$1; shift
    mkdir -p "$(dirname "$judge_log")"
    OMP_NUM_THREADS=1 "$TTT" fit judge "$@" > "$judge_log" 2>&1 &
    judge_pid=$!
    trap '[ -z "${judge_pid:-}" ] || kill "$judge_pid" 2>/dev/null || true' EXIT
}
wait_for_judge() {
    [ -n "${judge_pid:-}" ] || return 0
    wait "$judge_pid" || { judge_pid=""; tail -n 5 "$judge_log" >&2; die "stage 2: the judge failed, see $judge_log"; }
    judge_pid=""
}

# say N TEXT: one line with the time since the start.
say() { printf '[%4ds] stage %s: %s\n' "$SECONDS" "$1" "$2"; }
