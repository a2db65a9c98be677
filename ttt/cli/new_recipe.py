"""The files of a fresh recipe: configuration, stages, data, a plug-in; complete enough to run as they are."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources

from ttt.cli.new_plugin import plugin_source
from ttt.errors import ConfigError, suggest
from ttt.registry.core import family

_SPAN = "  sampler: {name: blockwise, block_length: 8, diffusion_steps: 64, gen_length: 64}"


@dataclass(frozen=True)
class Kind:
    """What recipes differ in.  ``plugged``: family of the sample plug-in; ``@PLUGIN@`` stands for its name."""

    says: str
    objective: str
    sampler: str
    plugged: str = "noise"


KINDS = {
    "ttt": Kind(
        "Text-to-Talk: text from left to right, audio spans by absorbing diffusion, noised in place (the published objective).",
        "objective:\n  name: ttt\n  noise: {name: @PLUGIN@, power: 1.0}\n"
        "  strategies: [{name: banom, p: 0.3}, {name: ppm, p: 0.3}, {name: sst, p: 0.5}]",
        _SPAN,
    ),
    "dual_stream": Kind(
        "Text-to-Talk on its exact factorisation: a clean sample and a noisy copy of every span, block by block.",
        "objective:\n  name: dual_stream\n  mask: {name: dual_stream, clean: {name: block_causal, block_length: 8}}\n"
        "  noise: {name: @PLUGIN@, power: 1.0}\n  weighting: uniform",
        _SPAN,
    ),
    "ar": Kind(
        "The autoregressive baseline: every token, audio included, predicted from left to right.",
        "objective: {name: ar}",
        "  sampler: ar\n  length: {name: @PLUGIN@, codes: 500}",
        "length",
    ),
    "nar": Kind(
        "The non-autoregressive baseline: whole answers, text included, by masked diffusion (LLaDA).",
        "objective:\n  name: nar\n  noise: {name: @PLUGIN@, power: 1.0}",
        "  sampler: {name: blockwise, canvas: answer, block_length: 8, diffusion_steps: 64, gen_length: 64}",
    ),
    "llada": Kind(
        "LLaDA: whole answers, text included, by masked diffusion; training fills answers up to the canvas of decoding.",
        "objective:\n  name: nar\n  noise: {name: @PLUGIN@, power: 1.0}\n"
        "  strategies: [{name: answer_padding, length: 64}]  # gen_length below",
        "  sampler:\n    {name: blockwise, canvas: answer, whole_canvas: true, gen_length: 64, block_length: 64, "
        "diffusion_steps: 32, remask: low_confidence}",
    ),
}  # fmt: skip
FILES = {
    "conf/base.yaml": "base.yaml.txt", "run.sh": "run.sh.txt", "README.md": "README.md.txt", "local/data.py": "data.py.txt",
}  # fmt: skip


def recipe_files(name: str, source: str) -> dict[str, str]:
    """Path inside the recipe folder -> text.  ``source``: one of `KINDS`; raises `ConfigError` for another."""
    if source not in KINDS:
        raise ConfigError(f"--from: no recipe {source!r}.{suggest(source, KINDS)} There are: {', '.join(KINDS)}")
    kind = KINDS[source]
    registry = family(kind.plugged)
    plugin = f"{name}_{kind.plugged}"
    values = {
        "@OBJECTIVE@": kind.objective, "@EVAL@": kind.sampler, "@NAME@": name, "@SAYS@": kind.says, "@FAMILY@": kind.plugged,
        "@PLUGIN_SAYS@": f"a {registry.title} to change", "@PLUGIN@": plugin,
    }  # fmt: skip
    folder = resources.files("ttt.cli") / "templates" / "recipe"
    out = {path: (folder / template).read_text(encoding="utf-8") for path, template in FILES.items()}
    for key, value in values.items():
        out = {path: text.replace(key, value) for path, text in out.items()}
    return {**out, "plugin.py": plugin_source(registry, plugin)}
