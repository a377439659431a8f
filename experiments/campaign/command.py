"""What `experiments/claims.py` does with its flags."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from campaign import rendering, running
from campaign.claims import read_claims
from campaign.state import State, listed, read_state
from condkd_ray.commands.console.exit_codes import ended, say, show, speak
from condkd_ray.commands.console.live import TERMINAL
from condkd_ray.core.method import require
from condkd_ray.runs.options import Options

HERE = "its rows name this machine's processor, so that it runs here"


def done(args: Any) -> int:
    """Do what the flags ask for. The exit code. Raises `InputError`."""
    check_flags(args)
    asked = [(args.lists, list_), (args.writes, write), (args.checks, check), (True, run)]
    return next(do for wanted, do in asked if wanted)(args)


def list_(args: Any) -> int:
    """Tell what there is of the named claims, and what is missing."""
    show(listed(list(_states(args, args.names).values()), gpus=args.gpus_per_trial > 0))
    return 0


def write(args: Any) -> int:
    """Render the blocks of the texts."""
    _check_files(args.texts)
    states = _states(args)
    for path in args.texts:
        say(f"{path} {'is written' if rendering.write(path, states) else 'matches the stored rows'}")
    return 0


def check(args: Any) -> int:
    """Tell where the texts differ from the stored rows; the exit code is 1 then."""
    _check_files(args.texts)
    states = _states(args)
    found = [difference for path in args.texts if (difference := rendering.differences(path, states))]
    if found:
        show("".join(found))
        say("written by `python experiments/claims.py --write`, they match")
    return int(bool(found))


def run(args: Any) -> int:
    """Run what is missing of the named claims, then tell what the rows say."""
    speak(args.verbose)
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
    return ended(result)


def check_flags(args: Any) -> None:
    """Raise `InputError` for flags that cannot be together, and for rows that could not be stored."""
    asked = [
        flag for flag, given in (("--list", args.lists), ("--write", args.writes), ("--check", args.checks)) if given
    ]
    require(len(asked) <= 1, "what is asked", " ".join(asked), "one of --list, --write and --check, or none to run")
    known = next(path for path in (args.results, *args.results.absolute().parents) if path.exists())
    require(known.is_dir(), "--results", str(args.results), f"a folder; {known} is a file")
    if not args.explain:
        accepted = f"a folder that can be written; {known} cannot"
        require(os.access(known, os.W_OK | os.X_OK), "--results", str(args.results), accepted)


def _states(args: Any, names: Sequence[str] = ()) -> Mapping[str, State]:
    """The claims with their rows, all or those named."""
    return {claim.name: read_state(claim, args.results) for claim in read_claims(args.claims, names)}


def _check_files(paths: tuple[Path, ...]) -> None:
    for path in paths:
        require(path.is_file(), "--texts", str(path), "text files with blocks of claims")


def _check_options(options: Options) -> None:
    """Raise `InputError` for what cannot be of a claim, whose records have one place and whose trials share nothing."""
    address = options.address or os.environ.get("RAY_ADDRESS")
    require(address in (None, "local"), "--address or RAY_ADDRESS of a claim", address, f"local: {HERE}")
    require(
        options.storage is None, "--storage of a claim", options.storage, "none: its trials keep their files in --out"
    )
    require(options.share == "trial", "--share of a claim", options.share, "trial")
    require(not options.fresh, "--fresh of a claim", options.fresh, "false: delete its folder in --out to run it anew")
