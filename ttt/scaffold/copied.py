"""A published method's recipe as a folder of your own: its configurations with their comments, its stages, its README.

What is shared by recipes (`recipes/_shared`, the stages of `recipes/ttt`) is copied too, so that the folder stands alone and
its files may be changed.  Paths on its command line are those of the folder where it is called.
"""

from __future__ import annotations

import re
from pathlib import Path

import ttt
from ttt.errors import ConfigError

METHODS = ("ttt", "llada", "audiolm", "slamomni")
SCRIPTS = ("run.sh", "from_wavs.sh")
_STAGES = "../ttt/run.sh"  # what a recipe's run.sh hands over to, where it has no stages of its own
_LINK = re.compile(r"\[([^\]]+)\]\((?:\.\./)+[^)]*\)")  # to a page outside the recipe


def copied_files(name: str, method: str) -> dict[str, str]:
    """Path inside the new folder -> text.  Raises `ConfigError` for an installation without the source tree's recipes."""
    recipes = Path(ttt.__file__).resolve().parents[1] / "recipes"
    source = recipes / method
    if not (source / "conf").is_dir():
        raise ConfigError(
            f"--from {method}: {recipes} is not there: recipes come with the source tree, not with an installed package; copy "
            "them from there, or begin with --from toy"
        )
    files = {str(path.relative_to(source)): _text(path) for path in sorted(source.glob("conf/**/*.yaml"))}
    files |= {f"shared/{path.name}": _text(path) for path in sorted((recipes / "_shared").iterdir())}
    for script in SCRIPTS:
        if (source / script).is_file():
            files[script] = _alone(_text(source / script), method, _text(recipes / "ttt/run.sh"))
    about = f"# {name}\n\nA copy of the recipe `{method}`, to be changed; `./run.sh --help` lists its options.\n"
    readme = _text(source / "README.md") if (source / "README.md").is_file() else ""
    readme = _LINK.sub(r"\1 (of the toolkit)", readme.partition("\n")[2])
    files["README.md"] = about + _own_paths(readme, method)
    return files


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def _alone(script: str, method: str, stages: str) -> str:
    """A script of a recipe without paths to other recipes."""
    if _STAGES in script:
        head = [line for line in script.splitlines() if line.startswith("#")]
        options = stages[stages.index("# Options:") : stages.index("\nset -")]
        script = re.sub(r"stages and options are those of recipes/ttt/run.sh.*", "the stages of TtT.", "\n".join(head))
        script += "\n#\n" + options.rstrip() + stages[stages.index("\n\nset -") :]
    script = script.replace('cd "$(dirname "$0")/../.."', 'own_recipe=$(cd "$(dirname "$0")" && pwd)')
    script = re.sub(r"^\. recipes/_shared/", '. "$own_recipe"/shared/', script, flags=re.M)
    script = re.sub(r"^here=.*", "here=$own_recipe", script, flags=re.M)
    script = script.replace(f'config_in recipes/{method} "$conf"', 'config_in "$own_recipe" "$conf"')
    script = script.replace('config_in $here "$conf"', 'config_in "$here" "$conf"')
    return _own_paths(script, method)


def _own_paths(text: str, method: str) -> str:
    """Commands as they are typed in the new folder."""
    return re.sub(rf"(?:\./)?recipes/{method}/(?=run\.sh|conf|from_wavs\.sh)", "./", text)
