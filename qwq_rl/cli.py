"""The command line: `qwq-rl VERB ...`.

The module of a verb is imported only when that verb runs, so that help and error messages appear at once.
"""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence

from qwq_rl import __version__
from qwq_rl.errors import UserError, close_to

VERBS = {
    "run": ("qwq_rl.pipeline.run", "train every stage of a recipe, evaluate, report and export; goes on where it was"),
    "check": ("qwq_rl.config.check", "every mistake of a recipe, before a model loads"),
    "report": ("qwq_rl.report.build", "a run's page: one HTML file that opens offline; two runs are compared"),
    "evaluate": ("qwq_rl.evals.evaluate", "evaluate a checkpoint on held-out sets"),
    "export": ("qwq_rl.export.export", "a stage's checkpoint as a Hugging Face folder with a model card"),
    "verify": ("qwq_rl.audit.verify", "judge responses with a verifier, or audit a verifier and its rows"),
    "rescore": ("qwq_rl.audit.rescore", "judge a run's recorded rollouts with another verifier: what would change?"),
    "sandbox": ("qwq_rl.sandbox.cli", "judge programs as training does, in jailed processes"),
}
"""Verb -> (the module with its `main`, its line in the help)."""
SHORT = {"eval": "evaluate"}
_NOT_PERMITTED = ("this may not be read or written", "see to its permissions, or choose another place with --runs,")
_MACHINE_ERRORS = {
    errno.ENOSPC: ("the disk is full", "make room"),
    errno.EDQUOT: ("the disk quota is used up", "make room"),
    errno.EROFS: _NOT_PERMITTED,
    errno.EACCES: _NOT_PERMITTED,
    errno.EPERM: _NOT_PERMITTED,
}
"""Operating system errors that the user can mend, by errno: (what is wrong, what to do)."""
HELP = """\
usage: qwq-rl VERB ...          qwq-rl VERB --help says more

Train a reasoning model by the QwQ-32B recipe: a cold start, RL on math and code, a short general RL stage.

{verbs}

examples:
  qwq-rl run recipes/tiny                                   the whole recipe, on a laptop
  qwq-rl run recipes/tiny --seeds 0,1,2                     three times, reported together
  qwq-rl run recipes/tiny --name lr --1_math_code.update.lr=5e-4
                                                            any field of any stage can be set
  qwq-rl report runs/tiny runs/lr                           compare two runs
  qwq-rl verify math rows.jsonl --audit                     can these rows and this verifier be trusted?
  qwq-rl rescore runs/tiny --verifier my.py:verify --domain math
                                                            would another verifier have rewarded otherwise?
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return the exit status. A user's mistake becomes one message on stderr, without a traceback."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    return spoken(lambda: _dispatch(argv))


def spoken(action: Callable[[], int]) -> int:
    """Run `action` and return its exit status.

    Where a known error stops it, print one message on stderr and return the status of that error. Other errors are
    raised.
    """
    try:
        status = action()
        # A closed pipe must raise here, where it is handled, and not when Python exits.
        sys.stdout.flush()
        return status
    except UserError as error:
        print(f"qwq-rl: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("qwq-rl: stopped; the same command goes on", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of the output is gone. Python flushes stdout once more at exit; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        message = _MACHINE_ERRORS.get(error.errno or 0)
        if message is None:
            raise
        where = f" ({error.filename})" if error.filename else ""
        print(f"qwq-rl: {message[0]}{where}; {message[1]} and run the same command again", file=sys.stderr)
        return 1


def _dispatch(argv: Sequence[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        verbs = "\n".join(f"  {name:<10}{about}" for name, (_, about) in VERBS.items())
        print(HELP.format(verbs=verbs), end="")
        return 0 if argv else UserError.exit_status
    if argv[0] == "--version":
        print(f"qwq-rl {__version__}")
        return 0
    verb = SHORT.get(argv[0], argv[0])
    if verb not in VERBS:
        nearest = close_to(verb, [*VERBS, *SHORT])
        hint = f"did you mean `qwq-rl {nearest}`?" if nearest else f"there is {', '.join(VERBS)}"
        raise UserError(f"there is no verb {argv[0]}: {hint}")
    module = importlib.import_module(VERBS[verb][0])
    return int(module.main(list(argv[1:])))


if __name__ == "__main__":
    sys.exit(main())
