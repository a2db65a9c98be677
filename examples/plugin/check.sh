#!/usr/bin/env bash
# Does this project work as a plug-in?  Installs it beside the tested environment (nothing of that is changed, nothing is
# downloaded), checks each plug-in, then trains and decodes some steps of the toy world with all of them.
#
#   examples/plugin/check.sh [PYTHON]      PYTHON: default .venv/bin/python of this repository
#
# Work is kept in a folder of its own and removed at the end; KEEP=1 keeps it.

set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
python=${1:-$root/.venv/bin/python}
[ -x "$python" ] || { echo "check.sh: no $python; run 'make env' first, or name a Python that has ttt" >&2; exit 2; }
work=$(mktemp -d)
[ -n "${KEEP:-}" ] || trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false TTT_LOG=${TTT_LOG:-warning}
say() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

say "install into $work/site"
cp -r "$here" "$work/source"  # building leaves files beside setup.py
"$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps --no-build-isolation \
    --target "$work/site" "$work/source"
rm -rf "$work/source"  # from here on only what was installed counts
export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
cd "$work"
ttt() { "$python" -m ttt "$@"; }

say "found by ttt list"
ttt list > list.txt
for name in recent sigmoid halving small_lm revoice; do
    grep -A2 "^  $name " list.txt | grep -q ttt_example/ || { echo "check.sh: ttt list does not show $name" >&2; exit 1; }
done

say "ttt check"
ttt check mask recent width=6
ttt check noise sigmoid
ttt check sampler halving block_length=4 gen_length=16
ttt check task revoice
ttt check arch small_lm dim=16 heads=2 layers=1
ttt check weighting late --plugins "$here/ten_lines.py"

say "toy world"
"$python" "$root/egs/toy/local/data.py" --out "$work/corpus" --seed 1 --items 60
# Its recognition items carry what this task needs: the same words in and out.
sed -i 's/"task": "asr"/"task": "revoice"/' "$work"/corpus/*.items.jsonl
common=(--config "$here/conf/toy.yaml" run.dir="$work/run" data.corpus="$work/corpus" data.dir="$work/data")
ttt tokenize "${common[@]}"
ttt examples "${common[@]}"
say "training"
ttt train "${common[@]}" objective.weighting=late --plugins "$here/ten_lines.py"
say "decoding"
ttt generate "${common[@]}" eval.examples="[$work/data/test.jsonl]" --plugins "$here/ten_lines.py"
count=$(grep -c '"uid"' "$work/run/eval/test.generations.jsonl")
[ "$count" -gt 0 ] || { echo "check.sh: nothing was generated" >&2; exit 1; }
say "done: $count answers"
