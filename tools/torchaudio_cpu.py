"""Make torchaudio importable beside a CPU-only torch.

The torchaudio wheel on PyPI carries libraries linked to CUDA. Beside a CPU torch they fail to load, and
`import torchaudio` fails with them; so does transformers, which imports torchaudio wherever it is installed.
The libraries are optional: without them the pure-Python transforms (mel, resample, Griffin-Lim) work.
This script moves them to `torchaudio/lib_disabled`, and only when torch is CPU-only and the import fails.

Usage: `python tools/torchaudio_cpu.py [--check]`. Prints one line; exits 2 when torchaudio stays unusable.
`--check` looks at the files and imports nothing: it exits 2 when a failing library may still be in place.
"""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

CUDA_MARKS = (b"libc10_cuda.so", b"libtorch_cuda.so", b"libcudart.so")


def package_dir(name: str) -> Path | None:
    """The folder of an installed package, found without importing it."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def torch_is_cpu_only(torch_dir: Path) -> bool:
    """True when torch was built without CUDA and without ROCm, read from torch/version.py."""
    text = (torch_dir / "version.py").read_text(encoding="utf-8")
    built = dict(re.findall(r"^(cuda|hip)\b[^=]*=\s*(.+)$", text, flags=re.M))
    return all(built.get(key, "None").strip() == "None" for key in ("cuda", "hip"))


def import_error() -> str | None:
    """None when torchaudio imports in a fresh interpreter, else the last line of its error."""
    done = subprocess.run([sys.executable, "-c", "import torchaudio"], capture_output=True, text=True)
    if done.returncode == 0:
        return None
    lines = done.stderr.strip().splitlines()
    return lines[-1] if lines else f"exit code {done.returncode}"


def cuda_linked(lib: Path) -> list[Path]:
    """The libraries under `lib` that name a CUDA library."""
    return [path for path in sorted(lib.glob("*.so")) if any(m in path.read_bytes() for m in CUDA_MARKS)]


def main(argv: list[str]) -> int:
    torch_dir, audio_dir = package_dir("torch"), package_dir("torchaudio")
    if torch_dir is None or audio_dir is None:
        print("torchaudio: torch or torchaudio is not installed", file=sys.stderr)
        return 2
    if not torch_is_cpu_only(torch_dir):
        print("torchaudio: torch has GPU support, left alone")
        return 0
    lib, aside = audio_dir / "lib", audio_dir / "lib_disabled"
    if "--check" in argv:
        bad = cuda_linked(lib)
        if bad:
            print(f"torchaudio: {bad[0].name} needs CUDA and torch is CPU-only", file=sys.stderr)
            return 2
        print("torchaudio: ready")
        return 0
    error = import_error()
    if error is None:
        print("torchaudio: imports beside CPU torch, nothing to do")
        return 0
    libraries = sorted(lib.glob("*.so"))
    aside.mkdir(exist_ok=True)
    for path in libraries:
        path.replace(aside / path.name)
    error = import_error()
    if error is not None:
        print(f"torchaudio: import still fails with its libraries moved aside: {error}", file=sys.stderr)
        return 2
    print(f"torchaudio: moved {len(libraries)} libraries to {aside.name}/, imports beside CPU torch")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
