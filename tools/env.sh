#!/usr/bin/env bash
# Makes .venv in the repository root: pinned packages (tools/requirements.txt) and `ttt` itself, editable.
# A second run only compares a digest and the installed versions. Exit code 2 and one line on failure.
#
# torch: a CUDA torch that is already there is left alone (in .venv, or in the Python this starts from, whose
#        packages .venv then sees). Otherwise the pinned torch: from PyPI where there is an NVIDIA GPU, else from
#        pytorch's CPU index, or from PyPI where that index cannot be reached.
#
# Usage: tools/env.sh [--force]      install again even if the digest matches
#        TTT_PYTHON=python3.12 tools/env.sh        choose the interpreter
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

ROOT=$PWD
VENV=$ROOT/.venv
PY=$VENV/bin/python
STAMP=$VENV/.ttt-env
REQUIREMENTS=tools/requirements.txt
CPU_INDEX=https://download.pytorch.org/whl/cpu
LOG=$(mktemp "${TMPDIR:-/tmp}/ttt-env.XXXXXX")
trap 'rm -f "$LOG"' EXIT
export PIP_DISABLE_PIP_VERSION_CHECK=1

say() { echo "env: $*"; }
fail() {
  echo "env: error: $*" >&2
  exit 2
}

# pip_install WHAT ARGUMENTS...: quiet; on failure one line with pip's own error
pip_try() { "$PY" -m pip install -q "$@" >"$LOG" 2>&1; }
pip_install() {
  local what=$1
  shift
  pip_try "$@" || fail "cannot install $what: $(grep -iE '^ *error' "$LOG" | head -n 1 || tail -n 1 "$LOG")"
}

# torch_build PYTHON: "cuda 2.13.0 /site-packages", "cpu ..." or "none", without importing torch
torch_build() {
  "$1" - <<'PYTHON' 2>/dev/null || echo none
import importlib.util
import pathlib
import re

spec = importlib.util.find_spec("torch")
if spec is None or not spec.origin:
    print("none")
else:
    folder = pathlib.Path(spec.origin).parent
    text = (folder / "version.py").read_text()
    version = re.search(r"^__version__\s*=\s*['\"]([^'\"]+)", text, re.M).group(1)
    built = re.findall(r"^(?:cuda|hip)\b[^=\n]*=\s*(\S+)", text, re.M)
    print("cuda" if any(value != "None" for value in built) else "cpu", version, folder.parent)
PYTHON
}

pin() { sed -n "s/^$1==\([^; ]*\).*/\1/p" "$REQUIREMENTS" | head -n 1; }
usable() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }
has_gpu() { command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; }

# everything the environment depends on; a moved repository has other paths in .venv/bin, so the root counts
digest() {
  "$1" - "$ROOT" "$REQUIREMENTS" tools/env.sh tools/torchaudio_cpu.py setup.py <<'PYTHON'
import hashlib
import pathlib
import sys

sha = hashlib.sha256(sys.argv[1].encode())
for name in sys.argv[2:]:
    sha.update(pathlib.Path(name).read_bytes())
print(sha.hexdigest())
PYTHON
}

# the pins against the installed metadata, and torchaudio's files; imports none of the packages
verify() {
  "$PY" - "$REQUIREMENTS" <<'PYTHON'
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

kept_torch = (Path(sys.prefix) / ".ttt-kept-torch").is_file()
for line in Path(sys.argv[1]).read_text().splitlines():
    line = line.split("#")[0].strip()
    if not line:
        continue
    need = Requirement(line)
    if need.marker and not need.marker.evaluate():
        continue
    try:
        have = version(need.name)
    except PackageNotFoundError:
        sys.exit(f"{need.name} is not installed")
    if not need.specifier.contains(have) and not (kept_torch and need.name in ("torch", "torchaudio")):
        sys.exit(f"{need.name} is {have}, not {need.specifier}")
PYTHON
  "$PY" tools/torchaudio_cpu.py --check >/dev/null
  [ -x "$VENV/bin/ttt" ] || { echo "no .venv/bin/ttt" >&2; return 1; }
}

case "${1:-}" in
  "" | --force) ;;
  -h | --help) sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 0 ;;
  *) fail "unknown argument '$1' (the only one is --force)" ;;
esac

# 1. is there anything to do?
if [ "${1:-}" != --force ] && [ -x "$PY" ] && [ -f "$STAMP" ]; then
  if [ "$(cat "$STAMP")" != "$(digest "$PY")" ]; then
    say "out of date: the pins, this script or the folder changed"
  elif verify 2>"$LOG"; then
    say ".venv is up to date (torch $(torch_build "$PY" | cut -d' ' -f2))"
    exit 0
  else
    say "out of date: $(tail -n 1 "$LOG")"
  fi
fi

# 2. the virtual environment
if [ -d "$VENV" ]; then
  if ! usable "$PY"; then
    say "the Python of .venv does not run: made anew"
    rm -rf "$VENV"
  elif [ -f "$VENV/.ttt-root" ] && [ "$(cat "$VENV/.ttt-root")" != "$ROOT" ]; then
    say ".venv was made in another folder: made anew"
    rm -rf "$VENV"
  fi
fi
base_torch=""
if [ ! -d "$VENV" ]; then
  chosen=""
  if [ -n "${TTT_PYTHON:-}" ]; then
    usable "$TTT_PYTHON" || fail "TTT_PYTHON=$TTT_PYTHON is no Python of version 3.10 or newer"
    chosen=$TTT_PYTHON
  else
    # a Python that already has a CUDA torch goes first, then 3.11
    for candidate in python3 python; do
      if usable "$candidate" && [[ $(torch_build "$candidate") == cuda* ]]; then chosen=$candidate; break; fi
    done
    if [ -z "$chosen" ]; then
      for candidate in python3.11 python3 python3.12 python3.13 python3.10 python; do
        if usable "$candidate"; then chosen=$candidate; break; fi
      done
    fi
    [ -n "$chosen" ] || fail "no Python of version 3.10 or newer (python3.11 is the one this is tested with)"
  fi
  version=$("$chosen" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])')
  note=""
  [[ $version == 3.11.* ]] || note=" (3.11 is the version this is tested with)"
  build=$(torch_build "$chosen")
  [[ $build != cuda* ]] || base_torch=$(cut -d' ' -f3- <<<"$build")
  "$chosen" -m venv "$VENV" >"$LOG" 2>&1 || {
    rm -rf "$VENV"
    fail "$chosen -m venv does not work: $(head -n 1 "$LOG") (on Debian and Ubuntu: apt-get install python3-venv)"
  }
  if [ -n "$base_torch" ]; then
    site=$("$PY" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
    echo "$base_torch" >"$site/ttt-base-packages.pth"
    note="$note; it sees the packages in $base_torch"
  fi
  say "made .venv with Python $version$note"
else
  say "kept .venv with $("$PY" --version)"
fi
rm -f "$STAMP"
echo "$ROOT" >"$VENV/.ttt-root"
pip_install "pip and the build tools" -U pip "setuptools==$(pin setuptools)" "wheel==$(pin wheel)" \
  "packaging==$(pin packaging)" "ninja==$(pin ninja)"
say "build tools: setuptools $(pin setuptools), wheel, packaging, ninja"

# 3. torch
TORCH=$(pin torch)
TORCHAUDIO=$(pin torchaudio)
read -r kind have _ <<<"$(torch_build "$PY")"
index=()
rm -f "$VENV/.ttt-kept-torch"
if [ "$kind" = cuda ] && [ "${have%%+*}" = "$TORCH" ]; then
  say "torch: $have with CUDA is there, left alone"
elif [ "$kind" = cuda ]; then
  touch "$VENV/.ttt-kept-torch"
  say "torch: $have with CUDA is there, left alone (the pin is $TORCH)"
elif [ "$kind" = cpu ] && [ "${have%%+*}" = "$TORCH" ] && ! has_gpu; then
  say "torch: $have is there"
elif has_gpu; then
  # --force-reinstall replaces a CPU build of the same version
  force=()
  [ "$kind" != cpu ] || force=(--force-reinstall)
  pip_install "torch $TORCH" "${force[@]}" "torch==$TORCH"
  say "torch: $TORCH from PyPI (NVIDIA GPU found)"
else
  source="PyPI ($CPU_INDEX cannot be reached)"
  if "$PY" -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=5)' \
      "$CPU_INDEX/torch/" >/dev/null 2>&1; then
    index=(--index-url "$CPU_INDEX")
    source="$CPU_INDEX"
  fi
  if [ "${#index[@]}" -gt 0 ] && ! pip_try "${index[@]}" "torch==$TORCH"; then
    index=()
    source="PyPI ($CPU_INDEX does not serve it)"
  fi
  [ "${#index[@]}" -gt 0 ] || pip_install "torch $TORCH" "torch==$TORCH"
  say "torch: $TORCH from $source, no NVIDIA GPU"
fi
read -r kind have _ <<<"$(torch_build "$PY")"
[ "$kind" != none ] || fail "torch is not importable after its installation"

# 4. torchaudio, without its dependencies: it must not change torch
#    up to 2.11 its version follows torch's; 2.11 serves the later ones
minor=$(cut -d. -f2 <<<"$have")
if [ -f "$VENV/.ttt-kept-torch" ] && "$PY" -c 'import torchaudio' >/dev/null 2>&1; then
  say "torchaudio: there beside the kept torch, left alone"
else
  wanted="torchaudio==$TORCHAUDIO"
  if [[ $have == 2.* ]] && [ "$minor" -lt "$(cut -d. -f2 <<<"$TORCHAUDIO")" ]; then wanted="torchaudio==2.$minor.*"; fi
  if [ "${#index[@]}" -eq 0 ] || ! pip_try --no-deps "${index[@]}" "$wanted"; then
    pip_install "$wanted" --no-deps "$wanted"
  fi
  say "torchaudio: ${wanted#*==}, torch unchanged"
fi
note=$("$PY" tools/torchaudio_cpu.py 2>"$LOG") || fail "$(tail -n 1 "$LOG")"
say "$note"

# 5. the rest, with torch held where it is
echo "torch==$have" >"$VENV/.ttt-constraints"
grep -vE '^(torch|torchaudio|deepspeed)==' "$REQUIREMENTS" >"$VENV/.ttt-requirements"
pip_install "the packages of $REQUIREMENTS" -c "$VENV/.ttt-constraints" -r "$VENV/.ttt-requirements"
say "packages: the pins of $REQUIREMENTS"

# no operator is compiled here: deepspeed compiles what a run needs on first use
DS_BUILD_OPS=0 DS_ACCELERATOR=cpu pip_install "deepspeed $(pin deepspeed)" --no-build-isolation \
  -c "$VENV/.ttt-constraints" "deepspeed==$(pin deepspeed)"
say "deepspeed: $(pin deepspeed), built without isolation, operators compiled on first use"

# 6. ttt itself
pip_install "ttt" -e . --no-deps --no-build-isolation
say "ttt: installed from $(basename "$ROOT")/ as editable, console script .venv/bin/ttt"

verify 2>"$LOG" || fail "the environment is not as pinned: $(tail -n 1 "$LOG")"
digest "$PY" >"$STAMP"
say "ready in ${SECONDS} s: torch $have ($kind)"
