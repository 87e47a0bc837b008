"""``python -m quire.verify FILE``: run a step again that differed from the reference, and say where it differs now.

Exit status: 1 if it differs again, 0 if not, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import sys

from quire.reference.control.errors import QuireError
from quire.verify.compare import Difference
from quire.verify.replay import Recording, Run, read, replay

SHOWN = 20  # differences


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.verify", description=__doc__.partition("\n")[0])
    parser.add_argument("file", metavar="FILE", help="a file of verify_dir")
    parser.add_argument("--model", help="where the model is now [where it was]")
    arguments = parser.parse_args(argv)
    try:
        recording = read(arguments.file)
        print("\n".join(_then(recording)))
        runs = replay(recording, model=arguments.model)
    except QuireError as error:
        print(f"quire: {error}", file=sys.stderr)
        return 2
    for i, run in enumerate(runs, 1):
        print("\n".join(_now(f"run {i} of {len(runs)}", run)))
    again = any(run.differences for run in runs)
    if not again:
        print("not reproduced: it depends on something that is not in the file, such as what else was in the memory")
    return int(again)


def _then(recording: Recording) -> list[str]:
    about, plan = recording.about, recording.plan
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    kept = f"{len(plan.seqs)} of {about['sequences']} sequences"
    return [
        f"step {plan.step} of {about['created']}: {kept}, {plan.num_tokens} tokens, {about['num_blocks'] - 1} blocks",
        f"{about['config']['model']} on the {about['plane']} plane, {about['hardware']}; {versions}",
        f"then: {len(about['differences'])} differences",
        *_listed([Difference(d["what"], d["problem"], d["row"]) for d in about["differences"]]),
    ]


def _now(name: str, run: Run) -> list[str]:
    off = "are those recorded" if run.off == 0 else f"differ from those recorded by {run.off:.2g}"
    return [f"{name}: {len(run.differences)} differences; the hidden states {off}", *_listed(run.differences)]


def _listed(differences: list[Difference]) -> list[str]:
    lines = [f"  {d.what}: {d.problem}; most in row {d.row}" for d in differences[:SHOWN]]
    return lines + ["  …"] * (len(differences) > SHOWN)


if __name__ == "__main__":
    sys.exit(main())
