"""Is a run healthy?  Checks of its log, of the batches and plans its code makes, and of its checkpoint.

Logs show that something is wrong, seldom what.  So the classic mistakes are looked for where they happen: a batch is built
again and planned by the run's own objective, and every input, target, weight and mask entry is compared with what the
definitions say (spec of TtT, sections 4-6); the checkpoint is asked what it really predicts, sees and has learnt.

Everything here takes plain objects; `ttt.cli.doctor` collects them from a run folder.
"""

from ttt.doctor.finding import (
    CAUSAL,
    FAULT,
    FROZEN,
    LEAK,
    NO_INVERSE_P,
    NOTE,
    OK,
    PAD,
    SHIFTED,
    SHIFTS,
    SKIP,
    WARN,
    WRONG_MASK,
    Finding,
    faults,
)
from ttt.doctor.log import check_bands, check_log, make_bands
from ttt.doctor.model import check_model, check_rows, check_start
from ttt.doctor.plans import check_plans
from ttt.doctor.truth import Planned, Truth, make_plans, truth_of

__all__ = [
    "CAUSAL",
    "FAULT",
    "FROZEN",
    "Finding",
    "LEAK",
    "NOTE",
    "NO_INVERSE_P",
    "OK",
    "PAD",
    "Planned",
    "SHIFTED",
    "SHIFTS",
    "SKIP",
    "Truth",
    "WARN",
    "WRONG_MASK",
    "check_bands",
    "check_log",
    "check_model",
    "check_plans",
    "check_rows",
    "check_start",
    "faults",
    "make_bands",
    "make_plans",
    "truth_of",
]
