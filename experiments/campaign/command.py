"""The commands of `experiments/claims.py`: run, --list, --write and --check."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign import rendering, running
from campaign.claims import read_claims
from campaign.state import State, listed, read_state
from condkd_ray.commands.console.exit_codes import exit_code_of, log_line, log_to_stderr, show
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.core.method import require
from condkd_ray.runs.options import Options

HERE = "a claim runs on this machine, because its rows name the processor"


def done(args: Any) -> int:
    """Run the command that the flags select, and return its exit code. Raises `InputError` for bad flags."""
    check_flags(args)
    commands = [(args.lists, list_), (args.writes, write), (args.checks, check), (True, run)]
    return next(command for selected, command in commands if selected)(args)


def list_(args: Any) -> int:
    """Print which rows of the named claims exist, and which are missing."""
    show(listed(list(_states(args, args.names).values()), gpus=args.gpus_per_trial > 0))
    return 0


def write(args: Any) -> int:
    """Render the blocks in the text files."""
    _check_files(args.texts)
    states = _states(args)
    for path in args.texts:
        log_line(f"{path} {'is written' if rendering.write(path, states) else 'matches the stored rows'}")
    return 0


def check(args: Any) -> int:
    """Print the differences between the texts and the stored rows; the exit code is 1 if there are any."""
    _check_files(args.texts)
    states = _states(args)
    found = [difference for path in args.texts if (difference := rendering.differences(path, states))]
    if found:
        show("".join(found))
        log_line("`python experiments/claims.py --write` renders them from the stored rows")
    return int(bool(found))


def run(args: Any) -> int:
    """Run the missing trials of the named claims, then print the results."""
    log_to_stderr(args.verbose)
    _check_options(args)
    claims = read_claims(args.claims, args.names)
    cells = {cell for claim in claims for cell in claim.cells}
    seeds = {seed for claim in claims for seed in claim.seeds}
    for flag, given, there in (("--only-cells", args.only_cells, cells), ("--only-seeds", args.only_seeds, seeds)):
        accepted = ", ".join(map(str, sorted(there)))
        require({*given} <= there, flag, " ".join(map(str, given)), f"some of {accepted}")
    place = running.Place(args, args.data_root, args.results, args.only_seeds, args.only_cells, TERMINAL)
    result = running.run(claims, place)
    for claim in claims:
        show(f"{claim.name}\n\n{rendering.whole(read_state(claim, args.results))}\n")
    return exit_code_of(result)


def check_flags(args: Any) -> None:
    """Raise `InputError` for flags that exclude each other, or if rows could not be stored."""
    given = [
        flag for flag, value in (("--list", args.lists), ("--write", args.writes), ("--check", args.checks)) if value
    ]
    require(len(given) <= 1, "commands", " ".join(given), "one of --list, --write and --check, or none to run")
    known = next(path for path in (args.results, *args.results.absolute().parents) if path.exists())
    require(known.is_dir(), "--results", str(args.results), f"a folder; {known} is a file")
    if not args.explain:
        accepted = f"a folder that can be written; {known} cannot"
        require(os.access(known, os.W_OK | os.X_OK), "--results", str(args.results), accepted)


def _states(args: Any, names: Sequence[str] = ()) -> Mapping[str, State]:
    """Return the claims with their rows by name, all or those named."""
    return {claim.name: read_state(claim, args.results) for claim in read_claims(args.claims, names)}


def _check_files(paths: tuple[Path, ...]) -> None:
    for path in paths:
        require(path.is_file(), "--texts", str(path), "text files with blocks of claims")


def _check_options(options: Options) -> None:
    """Raise `InputError` for options that a claim cannot have: its records are in `out`, its trials share nothing."""
    address = options.address or os.environ.get("RAY_ADDRESS")
    require(address in (None, "local"), "--address or RAY_ADDRESS of a claim", address, f"local: {HERE}")
    require(
        options.storage is None, "--storage of a claim", options.storage, "none: its trials keep their files in --out"
    )
    require(options.share == "trial", "--share of a claim", options.share, "trial")
    require(not options.fresh, "--fresh of a claim", options.fresh, "false: delete its folder in --out to run it anew")
