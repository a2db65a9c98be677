"""Metadata of the package. Tool settings are in pyproject.toml, pinned versions in tools/requirements.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """`__version__` of ttt/__init__.py, read as text: building needs none of the dependencies."""
    text = (ROOT / "ttt/__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', text, re.M)
    if found is None:
        raise RuntimeError("ttt/__init__.py has no __version__ line")
    return found.group(1)


def read_readme() -> str:
    """README.md, or nothing while there is none."""
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


EXTRAS = {
    "deepspeed": ["deepspeed>=0.19,<0.20"],
    "lora": ["peft>=0.15", "bitsandbytes"],
    "corpus": ["espeakng-loader"],
    "parquet": ["pyarrow>=15"],
    "snac": ["snac>=1.2"],
    "cosyvoice": ["s3tokenizer>=0.3"],
    "hdf5": ["h5py>=3"],
    "lm-eval": ["lm-eval>=0.4.13"],
    "dev": ["pytest>=8", "pytest-xdist", "pytest-timeout", "hypothesis", "ruff", "mypy"],
}
EXTRAS["all"] = sorted({requirement for group in EXTRAS.values() for requirement in group})

setup(
    name="ttt-speech",
    version=read_version(),
    description="Speech and text language models: text left to right, audio spans by absorbing diffusion",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["ttt", "ttt.*"]),
    package_data={"ttt": ["py.typed", "**/*.yaml", "**/*.json", "**/*.txt"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.5,<2.14",  # ttt/packed_weights.py uses two operators without a public name
        "torchaudio",
        "transformers>=5.0,<6",
        "omegaconf>=2.3",
        "numpy",
        "tensorboard",
        "soundfile",
        "sacrebleu",
        "jiwer",
        "safetensors",
        "tokenizers",
        "matplotlib",
        "tqdm",
    ],
    extras_require=EXTRAS,
    # the group `ttt.plugins` is for other packages: the plug-ins of this one are found without it
    # released versions of lm-evaluation-harness read no group of models: see docs/benchmarks_text.md
    entry_points={
        "console_scripts": ["ttt = ttt.cli.main:main"],
        "lm_eval.models": ["ttt = ttt.textbench.harness:Ttt", "unitlm = ttt.textbench.harness:Ttt"],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
