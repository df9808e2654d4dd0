"""The one kind of error that is the user's to mend, and what a process says with its exit code."""

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_PREEMPTED = 75  # "try again later" (EX_TEMPFAIL of sysexits.h): asked to stop, the same command goes on
EXIT_INTERRUPTED = 130  # as shells say it of a program ended by Ctrl-C


class UserError(ValueError):
    """What was asked for cannot be done as asked.

    The message is one or two lines: it names the file or flag, says what is wrong and what cures it. Verbs and tools
    print it without a traceback and end with `exit_code`.
    """

    exit_code = EXIT_FAILURE
    on_every_rank = False
    """Whether all processes of a run meet it alike, so that one of them may speak for all."""


class UsageError(UserError):
    """Flags that contradict each other or this machine: the run never started."""

    exit_code = EXIT_USAGE
    on_every_rank = True


class Preempted(KeyboardInterrupt):
    """A run that was asked to stop by a signal, and did: before its first step, or after one, with a checkpoint.

    No error, and like Ctrl-C caught by nothing that catches errors.
    """

    exit_code = EXIT_PREEMPTED

    def __init__(self, said: str, *, by_all: bool = False) -> None:
        super().__init__(said)
        self.by_all = by_all
        """Whether all ranks stop at this very place, as they agreed to; the run's log says so then."""
