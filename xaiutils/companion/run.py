"""Run notebooks headlessly, for example ``xaiutils run 02_lime_limit -p n_samples 4000``.

Names, types and ranges of parameters are checked before a kernel starts. Results take their final
names only once every cell ran and every declared figure and claim is there; a run that fails leaves
`<notebook>.failed.ipynb` and nothing else, one that is stopped (Ctrl-C) leaves nothing. Only a run
of the default profile without -p and --output writes `figures/`; others write below `build/`.

Exit codes: 0, 1 for a failed run, 2 for what is not allowed, 130 or 143 if stopped.
"""

import argparse
import json
import os
import sys
from pathlib import Path

from xaiutils.companion import apart, campaign, over_seeds, provenance, runner, stopping
from xaiutils.companion.kernel import RunError
from xaiutils.companion.notebooks import PROFILES, Project, ProjectError, parameters
from xaiutils.companion.runner import execute, prepare, update

MOST_SECONDS = 30 * 24 * 3600  # of a cell: more than a timer can count would be no limit


def listing(project):
    """All notebooks with their parameters, as text."""
    lines = []
    for name in project.names():
        lines.append(name)
        for p in parameters(project.read(name)).values():
            lines.append(f"  {p.name}: {p.annotation} = {p.default!r}  # {p.comment}")
    return "\n".join(lines)


def describe(project, name):
    """The parameters of one notebook, and what the other profiles make of them, as text.

    Parameters
    ----------
    project : Project
    name : str
        Notebook.

    Returns
    -------
    str
        Values are TOML literals, as `-p` takes them.

    Raises
    ------
    ProjectError
        If there is no such notebook, or its parameters cell is not well-formed.
    """
    declared = parameters(project.read(name))
    profiles, missing = {}, []
    for profile in PROFILES[1:]:
        try:
            profiles[profile] = project.overrides(profile, name, declared)
        except ProjectError as error:
            missing.append(f"  --profile {profile} cannot run: {error}")
    lines = [f"parameters of {name} (-p name value):"]
    for p in declared.values():
        lines.append(f"  {p.name}: {p.annotation} = {json.dumps(p.default)}  # {p.comment}")
        lines += [
            f"      {profile}: {json.dumps(values[p.name])}"
            for profile, values in profiles.items()
            if p.name in values
        ]
    return "\n".join(lines + missing)


def _whole(least, most=None):
    def convert(text):
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            up_to = "" if most is None else f" to {most}"
            raise argparse.ArgumentTypeError(
                f"{text[:40]!r} is not allowed; allowed: whole numbers from {least}{up_to}"
            )
        return number

    return convert


def _address(text):
    if not text.strip():  # a variable of the shell that is not set
        raise argparse.ArgumentTypeError("is empty; allowed: the address of a scheduler")
    return text


def _guarded(argv):
    """The same with "=" before the value of each -p: argparse takes -1e1 for an option."""
    guarded = list(argv)
    for place, text in enumerate(argv[:-2]):
        name, value = argv[place + 1 : place + 3]
        # A value that is an option was forgotten: left for argparse to say so.
        forgotten = name.startswith("-") or value.startswith("--") or value in ("-p", "-h")
        if text == "-p" and not forgotten:
            guarded[place + 2] = f"={value}"
    return guarded


def _parser():
    parser = argparse.ArgumentParser(
        prog="xaiutils run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="notebook, e.g. 02_lime_limit")
    parser.add_argument(
        "-h", "--help", action="store_true", help="this text; with NAME also its parameters"
    )
    parser.add_argument("--profile", default="default", help=f"one of {', '.join(PROFILES)}")
    parser.add_argument(
        "-p",
        nargs=2,
        action="append",
        default=[],
        dest="given",
        metavar=("name", "value"),
        help="set a parameter; the value is a TOML literal in the range that its comment gives",
    )
    parser.add_argument("--output", type=Path, metavar="PATH", help="place of the executed copy")
    parser.add_argument(
        "--cell-timeout",
        type=_whole(1, MOST_SECONDS),
        metavar="SECONDS",
        help="end the run if a cell takes longer (default: wait)",
    )
    many = parser.add_argument_group("many runs, each in a process of its own")
    many.add_argument(
        "--seeds",
        nargs="+",
        type=_whole(0),
        metavar="SEED",
        help="run once per seed into build/<profile>-seeds/NAME/seed-SEED/ and sum up the claims "
        "over seeds; a seed whose results are current is not run again",
    )
    where = many.add_mutually_exclusive_group()
    where.add_argument(
        "--jobs",
        type=_whole(1),
        default=1,
        metavar="N",
        help="runs at once on this machine, each on cores // N of its cores (default 1)",
    )
    where.add_argument(
        "--dask",
        type=_address,
        metavar="ADDRESS",
        help="let the workers of this dask.distributed scheduler do the runs, e.g. "
        "tcp://node1:8786; workers are processes of one thread each that see this very folder "
        "and have this environment",
    )
    what = parser.add_argument_group("instead of a run").add_mutually_exclusive_group()
    what.add_argument("--list", action="store_true", help="list notebooks and their parameters")
    what.add_argument("--update", action="store_true", help="write the outputs into the notebook")
    what.add_argument(
        "--prepare",
        nargs=2,
        metavar=("PROFILE", "FOLDER"),
        help="write copies of all notebooks with a profile's parameters and without outputs",
    )
    return parser


def _misuse(args):
    """What is wrong with a combination of options, or None."""
    many = bool(args.seeds or args.jobs > 1 or args.dask or len(args.names) > 1)
    doubled = {name for name in args.names if args.names.count(name) > 1}
    seeds, given = args.seeds or [], [name for name, _ in args.given]
    twice = {name for name in given if given.count(name) > 1}
    rules = {
        "give either NAME or one of --list, --prepare": bool(args.names)
        == bool(args.list or args.prepare),
        "--update runs the default profile of one notebook and takes no option but "
        "--cell-timeout": args.update
        and (args.profile != "default" or args.given or args.output or many),
        "--list and --prepare take no option for many runs": many and not args.names,
        "--list and --prepare take no option of a run": not args.names
        and (args.profile != "default" or args.given or args.output or args.cell_timeout),
        "--output is for a single run": many and args.output,
        f"NAME is given twice: {', '.join(sorted(doubled))}": doubled,
        "--seeds has a seed twice": len(set(seeds)) < len(seeds),
        f"-p sets a parameter twice: {', '.join(sorted(twice))}": twice,
        "give the seed by -p or by --seeds": seeds and "seed" in dict(args.given),
    }
    return next((text for text, broken in rules.items() if broken), None)


def _many(project, args):
    """Do several runs and sum up the claims over seeds; returns 0, or 1 if a run failed."""
    given = tuple(args.given)
    jobs = [
        apart.Job(str(project.root), name, args.profile, given, seed, args.cell_timeout)
        for name in args.names
        for seed in args.seeds or [None]
    ]
    outcomes = campaign.run(jobs, args.jobs, args.dask)
    for name in args.names if args.seeds else []:
        own = {job.seed: job for job in jobs if job.name == name}
        good = {s: runner.plan(**j.arguments()) for s, j in own.items() if not outcomes[j].code}
        if good:
            text, path = over_seeds.write(project, good, [s for s in own if s not in good])
            print(f"\n{text}\nwrote {os.path.relpath(path)}")
    return int(any(outcome.code for outcome in outcomes.values()))


def main(argv=None, project=None):
    """Command line; returns 0, 1 for a failed run, 2 for what is not allowed, 128 + a signal.

    SIGINT (Ctrl-C), SIGTERM and SIGHUP stop it: it ends kernels and removes what is not finished.
    """
    return stopping.exit_code(_main, sys.argv[1:] if argv is None else argv, project)


def _main(argv, project):
    parser = _parser()
    args = parser.parse_intermixed_args(_guarded(argv))
    args.given = [(name, value.removeprefix("=")) for name, value in args.given]
    project = project or Project(provenance.ROOT)
    single = args.names[0] if len(args.names) == 1 else None
    where = f"{single or 'notebooks'}: "
    try:
        if args.help:
            parser.epilog = "\n\n".join(describe(project, name) for name in args.names)
            parser.print_help()
            return 0
        if problem := _misuse(args):
            parser.error(problem)
        if args.list:
            print(listing(project))
        elif args.prepare:
            prepare(project, *args.prepare)
        elif args.update:
            update(project, single, args.cell_timeout)
        elif single and not args.seeds and not args.dask:
            copy = execute(
                *(project, single, args.profile, args.given, args.output),
                cell_timeout=args.cell_timeout,
            )
            print(f"wrote {os.path.relpath(copy)}")
        else:
            where = ""  # the error says which of the runs it is about
            return _many(project, args)
    except ProjectError as error:
        print(f"error: {where}{error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"\nfailed: {where}{error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
