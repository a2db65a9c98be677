"""Talking to a trained model: a conversation in a terminal, and questions whose answers are heard while they come.

`session`: one chat, from a line to an answer; `commands`: its /commands; `conversation`: turns and pieces of answers, without
a terminal; `screen`: terminal or pipe; `settings`: what /set may change; `streaming`, `latency`: ``ttt stream``.
"""
