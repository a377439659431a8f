"""The command line `condkd`: a try, a trial, a search, a condensed set, an export, a report, the pool, the methods."""

import sys

from condkd_ray.commands.front import VERBS, answered


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    code = answered(sys.argv[1:])
    if code is not None:
        sys.exit(code)
    try:
        # From here on it takes seconds.
        from condkd_ray.commands.console.exit_codes import exit_codes
    except KeyboardInterrupt:
        sys.exit(130)
    with exit_codes():
        name, *rest = sys.argv[1:]
        flags, run = VERBS[name].load()
        if VERBS[name].configured:
            sys.exit(run(rest))
        import tyro

        sys.exit(run(tyro.cli(flags, args=rest, prog=f"condkd {name}")))


if __name__ == "__main__":
    main()
