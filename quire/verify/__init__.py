"""Shadow verification: a share of the steps is computed once more by the reference, op by op, and compared.

The ops of both data planes have the same names, take the same arguments and read the same cache, so a step of any
plane can be repeated on its own tensors, with the reference working beside it on the same inputs. Errors then do not
add up from op to op, the tolerance is that of a single op, and what differs first has a name.

    runner.py    wraps a data plane's runner: which steps, in what order
    inputs.py    are token ids, positions, slots and block tables those that the plan asks for?
    lockstep.py  the ops, each run by both planes on the same tensors
    compare.py   how far two results may be apart
    choice.py    did the sampler choose what the reference chooses, up to near-ties?
    past.py      is the K/V of earlier steps what a sequence's tokens make of it?
    report.py    what is said of a step that diverges: a line in the log, and a file
    replay.py    the file as a step again: ``python -m quire.verify FILE``
"""

from quire.verify.report import Reports
from quire.verify.runner import VerifiedRunner

__all__ = ["Reports", "VerifiedRunner"]
