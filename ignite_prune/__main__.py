"""``python -m ignite_prune``: the command line."""

from ignite_prune.cli.entry_point import main

if __name__ == "__main__":
    main()
