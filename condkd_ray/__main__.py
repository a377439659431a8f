"""Entry point of the command line `condkd`. Its subcommands are defined in `condkd_ray.commands.front`."""

import sys


def main() -> None:
    """Run `condkd`. Exit codes are those of `condkd_ray.commands.experiment.command_line`."""
    try:
        from condkd_ray.commands.console.exit_codes import exit_codes
        from condkd_ray.commands.front import VERBS, claim_out, exit_code_without_command
    except KeyboardInterrupt:
        sys.exit(130)
    with exit_codes():
        code = exit_code_without_command(sys.argv[1:])
        if code is not None:
            sys.exit(code)
        name, *rest = sys.argv[1:]
        claim_out(VERBS[name], rest)
        # The next line imports PyTorch and Ray, which takes seconds.
        flags, run = VERBS[name].load()
        if VERBS[name].configured:
            sys.exit(run(rest))
        from condkd_ray.commands.parsing import parse

        sys.exit(run(parse(flags, rest, prog=f"condkd {name}")))


if __name__ == "__main__":
    main()
