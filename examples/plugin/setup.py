"""A plug-in project: what makes `ttt` find it is the entry point group `ttt.plugins`."""

from setuptools import setup

setup(
    name="ttt-example",
    version="0.1.0",
    description="An attention mask, a noise schedule, a sampler and a task for ttt",
    packages=["ttt_example"],
    python_requires=">=3.10",
    install_requires=["ttt-speech"],
    entry_points={"ttt.plugins": ["example = ttt_example"]},
)
