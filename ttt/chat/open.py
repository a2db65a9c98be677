"""A chat from a model folder to its end."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from ttt.api import open_codec, open_model
from ttt.chat.player import check_player, is_pipe
from ttt.chat.screen import Screen, piped, terminal
from ttt.chat.session import Chat, Output
from ttt.config.schema import RunConfig
from ttt.errors import ConfigError, DataError, TttError
from ttt.interfaces import LanguageModel
from ttt.io.terminal import own_codes
from ttt.io.writable import check_folder


def open_chat(
    config: RunConfig, folder: Path, *, out: str = "", player: str = "", room: int = 0, single: bool = False,
    raw: bool = False, system: str = "", task: str = "",
) -> int:  # fmt: skip
    """Load the model of ``folder`` and answer the lines of standard input; -> exit code.

    ``out``: folder for the files of every answer; ``player``: a command that gets the sound of each spoken answer; ``system``,
    ``task``: the system message, or the task of the run whose system message is used; ``room``,
    ``single``, ``raw``: see `Chat`.
    """
    if player:
        check_player(player)
    if sys.stdin is None or sys.stdin.closed:
        raise ConfigError(
            "standard input is closed: there is nobody to talk to; start it without '<&-', or pipe lines into it"
        )
    if out:
        check_folder(out)
    if out and next(Path(out).glob("turn-*"), None) is not None:
        raise DataError(f"{out}: holds the answers of another chat; name another folder with --out")
    screen = Screen(own_codes(sys.stdout))
    model = open_model(config, folder, LanguageModel, instead="use 'ttt continue'")
    codec = None
    try:
        codec = open_codec(config, model.tokenizer)
    except TttError as error:
        if out or player:
            raise
        screen.note(f"no sound: {error}")
    with tempfile.TemporaryDirectory(prefix="ttt-chat-") as scratch:
        files = Path(out) if out else Path(scratch) if player and not is_pipe(player) else None
        chat = Chat(config, model, folder, codec, screen, Output(files, bool(out), player), room, single, raw)
        chat.set_system(system or (chat.system_of(task) if task else ""))
        chat.greet()
        return chat.run(terminal() if sys.stdin.isatty() else piped(screen))
