"""The environment: pins, torchaudio beside the installed torch, package metadata, cheap `import ttt`."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAIN_PACKAGES = ["transformers", "tokenizers", "omegaconf", "numpy", "soundfile", "sacrebleu", "jiwer"]


def run(*command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command and return what it did; a failure shows its output."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd or ROOT, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def load_helper():
    """tools/torchaudio_cpu.py as a module."""
    spec = importlib.util.spec_from_file_location("torchaudio_cpu", ROOT / "tools/torchaudio_cpu.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pins() -> dict[str, str]:
    """Package -> pinned version, for the running Python."""
    requirements = pytest.importorskip("packaging.requirements")
    found = {}
    for line in (ROOT / "tools/requirements.txt").read_text(encoding="utf-8").splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        need = requirements.Requirement(line)
        if need.marker is None or need.marker.evaluate():
            assert need.name not in found, f"{need.name} is pinned twice"
            found[need.name] = str(need.specifier).removeprefix("==")
    return found


# ---- versions --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MAIN_PACKAGES)
def test_installed_version_is_the_pin(name):
    assert version(name) == pins()[name]


@pytest.mark.skipif(
    (Path(sys.prefix) / ".ttt-kept-torch").is_file(), reason="a CUDA torch of another version was left alone"
)
def test_torch_is_the_pin_with_any_build_tag():
    assert version("torch").split("+")[0] == pins()["torch"]
    assert version("torchaudio").split("+")[0] == pins()["torchaudio"]


# ---- torchaudio beside torch -----------------------------------------------------------------------------


def test_mel_resample_and_griffin_lim_work():
    torch = pytest.importorskip("torch")
    torchaudio = pytest.importorskip("torchaudio")
    tone = torch.sin(2 * torch.pi * 1000.0 * torch.arange(8000) / 16000)[None]  # (1, 8000), 1 kHz
    mel = torchaudio.transforms.MelSpectrogram(16000, n_fft=512, hop_length=160, n_mels=40, power=2.0)(tone)
    assert mel.shape == (1, 40, 51)
    assert int(mel[0, :, 10:40].mean(1).argmax()) in range(10, 20)  # the band around 1 kHz on the mel scale
    half = torchaudio.functional.resample(tone, 16000, 8000)
    assert half.shape == (1, 4000)
    expected = torch.sin(2 * torch.pi * 1000.0 * torch.arange(4000) / 8000)
    assert torch.allclose(half[0, 200:-200], expected[200:-200], atol=0.02)
    spec = torchaudio.transforms.Spectrogram(n_fft=512, hop_length=128, power=1.0)(tone)
    wave = torchaudio.transforms.GriffinLim(n_fft=512, hop_length=128, power=1.0, n_iter=8)(spec)
    peak = torch.fft.rfft(wave[0]).abs().argmax() * 16000 / wave.shape[1]
    assert abs(float(peak) - 1000.0) < 20.0


@pytest.mark.parametrize(
    ("text", "cpu_only"),
    [
        ("__version__ = '2.13.0+cpu'\ncuda: Optional[str] = None\nhip: Optional[str] = None\n", True),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None\n", False),
        ("__version__ = '2.13.0'\ncuda = None\nhip = '6.4'\n", False),
    ],
)
def test_a_gpu_build_of_torch_is_told_from_a_cpu_build(tmp_path, text, cpu_only):
    (tmp_path / "version.py").write_text(text, encoding="utf-8")
    assert load_helper().torch_is_cpu_only(tmp_path) is cpu_only


def fake_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuda: str, broken: bool) -> Path:
    """A torch and a torchaudio that fails to import while its library is in place; torchaudio's folder."""
    for name in ("torch", "torchaudio/lib"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "torch/__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "torch/version.py").write_text(f"cuda = {cuda}\nhip = None\n", encoding="utf-8")
    check = (
        "from pathlib import Path\nif list((Path(__file__).parent / 'lib').glob('*.so')): raise OSError('no CUDA')\n"
    )
    (tmp_path / "torchaudio/__init__.py").write_text(check if broken else "", encoding="utf-8")
    (tmp_path / "torchaudio/lib/a.so").write_bytes(b"\x7fELF libc10_cuda.so")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "torchaudio"


@pytest.mark.parametrize(
    ("cuda", "broken", "moved"), [("None", True, True), ("None", False, False), ("'13.0'", True, False)]
)
def test_libraries_move_only_beside_cpu_torch_and_when_broken(tmp_path, monkeypatch, cuda, broken, moved):
    audio = fake_packages(tmp_path, monkeypatch, cuda, broken)
    run(sys.executable, str(ROOT / "tools/torchaudio_cpu.py"))
    assert (audio / "lib_disabled/a.so").is_file() is moved
    assert (audio / "lib/a.so").is_file() is not moved


# ---- scripts ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", ["tools/env.sh", ".ci/run"])
def test_script_parses_and_is_executable(script):
    run("bash", "-n", script)
    assert os.access(ROOT / script, os.X_OK)


def test_env_script_refuses_an_unknown_argument():
    done = subprocess.run(["bash", "tools/env.sh", "--fast"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "env: error: unknown argument '--fast' (the only one is --force)\n"


def test_env_script_names_a_wrong_interpreter(tmp_path):
    (tmp_path / "tools").mkdir()
    for name in ("env.sh", "requirements.txt", "torchaudio_cpu.py"):
        shutil.copy(ROOT / "tools" / name, tmp_path / "tools" / name)
    done = subprocess.run(
        ["bash", "tools/env.sh"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "TTT_PYTHON": "/no/such/python"},
    )
    assert done.returncode == 2
    assert done.stderr.strip().splitlines() == [
        "env: error: TTT_PYTHON=/no/such/python is no Python of version 3.10 or newer"
    ]
    assert not (tmp_path / ".venv").exists()


def test_gitignore_keeps_the_data_package():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = subprocess.run(["git", "check-ignore", "-q", "ttt/data/batches/rows.py"], cwd=ROOT)
    assert done.returncode == 1


# ---- package ---------------------------------------------------------------------------------------------


def setup_arguments() -> dict[str, object]:
    """What setup.py passes to setup()."""
    code = (
        "import setuptools\n"
        "setuptools.setup = lambda **kwargs: print(repr(kwargs))\n"
        "import runpy\n"
        "runpy.run_path('setup.py')\n"
    )
    return ast.literal_eval(run(sys.executable, "-c", code).stdout)


def test_setup_metadata():
    arguments = setup_arguments()
    text = (ROOT / "ttt/__init__.py").read_text(encoding="utf-8")
    assert f'__version__ = "{arguments["version"]}"' in text
    assert arguments["license"] == "Apache-2.0"
    points = arguments["entry_points"]
    assert points["console_scripts"] == ["ttt = ttt.cli.main:main"]
    assert points["lm_eval.models"] == [f"{name} = ttt.textbench.harness:Ttt" for name in ("ttt", "unitlm")]
    assert len(points) == 2
    extras = arguments["extras_require"]
    assert set(extras) == {"cosyvoice", "deepspeed", "lora", "corpus", "parquet", "snac", "hdf5", "lm-eval", "dev", "all"}
    assert set(extras["all"]) == {need for name, group in extras.items() if name != "all" for need in group}
    assert "ttt" in arguments["packages"]
    assert all(name.split(".")[0] == "ttt" for name in arguments["packages"])


def test_every_requirement_of_the_package_is_pinned():
    names = {re.split(r"[<>=!]", need)[0] for need in setup_arguments()["install_requires"]}
    assert names <= set(pins())


def test_importing_ttt_loads_nothing_heavy(tmp_path):
    code = (
        "import sys, ttt\n"
        "heavy = {'torch', 'torchaudio', 'transformers', 'numpy', 'omegaconf'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print(ttt.__version__)"
    )
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", run(sys.executable, "-c", code, cwd=tmp_path).stdout)
