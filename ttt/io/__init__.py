"""Files: one module for each thing that many packages do with them.

`atomic` writes files and folders whole or not at all; `digests` names contents; `json_input` and `text_input` read JSON
and text that were written elsewhere; `json_output` turns values into JSON; `names` makes file names of ids;
`metrics_log` is the training log; `provenance` tells with which versions, code and machine something was made;
`system_errors` puts errors of the operating system in one line; `writable` asks before the work whether its result can be
written; `terminal` keeps what came with data from being a command to the terminal.
"""
