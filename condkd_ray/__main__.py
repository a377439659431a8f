"""The command line `condkd`: a try, a trial, a search, a condensed set, an export, a report, the pool, the methods."""

import sys


def main() -> None:
    """Entry point of `condkd`; exit codes as an experiment's."""
    try:
        from condkd_ray.commands.console.exit_codes import exit_codes
        from condkd_ray.commands.front import VERBS, answered, claim_out
    except KeyboardInterrupt:
        sys.exit(130)
    with exit_codes():
        code = answered(sys.argv[1:])
        if code is not None:
            sys.exit(code)
        name, *rest = sys.argv[1:]
        claim_out(VERBS[name], rest)
        # From here on it takes seconds.
        flags, run = VERBS[name].load()
        if VERBS[name].configured:
            sys.exit(run(rest))
        import tyro

        sys.exit(run(tyro.cli(flags, args=rest, prog=f"condkd {name}")))


if __name__ == "__main__":
    main()
