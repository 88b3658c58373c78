"""The drill: faults drawn by seeds, for as long as there is time; ``make drill``, or ``python -m tests.drill``.

Each kind of fault is a function of a seed in a file of its own here. It runs in a child process with a limit, and
returns an :class:`~tests.drill.outcome.Outcome`. A failure is printed with the command that runs it again.
"""
