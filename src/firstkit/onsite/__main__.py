"""The program that runs on a cluster: pilots, other ranks of their replicas, keepers of local jobs, scheduler commands
(by hand or through the gate of a key), trial jobs, copies of weights, launchers of engines."""

from __future__ import annotations

import os
import sys

USAGE = (
    "usage: first-onsite pilot FOLDER | rank FOLDER REPLICA | cluster VERB | gate --state-dir DIR | trial FOLDER | "
    "keep FOLDER LAUNCH | stage SOURCE FOLDER | llamacpp-server ...\n"
)


def main() -> int:
    """Each part imports only what it needs: start-up time is part of every cold start."""
    part, args = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    if part == "pilot":
        from firstkit.onsite import pilot

        return pilot.main(args)
    if part == "rank":
        from firstkit.onsite import rank

        return rank.main(args)
    if part == "cluster":
        from firstkit.onsite import command

        return command.main(args, runner())
    if part == "gate":
        from firstkit.onsite import gate

        return gate.main(args, runner(), os.environ)
    if part == "trial":
        from firstkit.onsite import trial

        return trial.main(args)
    if part == "stage":
        from firstkit.onsite import copying

        return copying.main(args)
    if part == "keep":
        from firstkit.schedulers import keeper

        return keeper.main(args)
    if part == "llamacpp-server":
        from firstkit.engines import llamacpp_server

        return llamacpp_server.main(args)
    sys.stderr.write(USAGE)
    return 2


def runner() -> list[str]:
    """The command that starts this program: the interpreter and the zipapp (or this file, in a source tree)."""
    return [sys.executable, "-I", os.path.abspath(sys.argv[0])]


if __name__ == "__main__":
    sys.exit(main())
