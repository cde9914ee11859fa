"""Commands and what they print. Heavy imports wait until a command needs them."""

from __future__ import annotations

import shlex
import signal
import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from logitkit.errors import InputError, Stopped, WorkerDied

app = typer.Typer(
    name="logitkit",
    help="Everything between a representation and a decision: rank losses, heads and more on your data.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
# a pipe has no width of its own: do not cut tables at 80 columns
out = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False)


@app.command()
def compare(
    settings: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SLOT=VALUE[,VALUE...]]...",
            help="What to compare, e.g. loss=ce,ldr head=linear,ebv data=train.csv:label seeds=5 tune=8."
            " Several values of a slot are compared, the first being the reference.",
        ),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes; one per core by default.")] = None,
    store: Annotated[
        str | None, typer.Option(help="SQLite file or postgresql:// URL for the results.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where checkpoints, models and the winner go.")] = Path(
        "logitkit-runs"
    ),
    report: Annotated[Path, typer.Option(help="The HTML report.")] = Path("report.html"),
    json: Annotated[Path | None, typer.Option(help="Also write every number as JSON.")] = None,
    csv: Annotated[Path | None, typer.Option(help="Also write one line per run as CSV.")] = None,
) -> None:
    """Rank recipes on your data under equal budgets.

    Interrupt it whenever you like: the same command goes on where it stopped.
    """
    from logitkit.cli.terminal import LiveRanking, print_ranking
    from logitkit.comparison import compare as run_comparison
    from logitkit.comparison import parse_settings

    words: dict[str, Any] = parse_settings(settings or [])
    for name in ("jobs", "store", "folder", "report", "json", "csv"):
        if name in words:
            raise InputError(f"{name} is an option: write --{name} {words[name]}.")
    options = {k: words.pop(k) for k in ("seeds", "tune", "metric") if k in words}
    for path in (report, json, csv):
        _writable(path)
    command = "logitkit " + shlex.join(sys.argv[1:])
    with LiveRanking(out) as live:
        result = run_comparison(
            **words, **options, jobs=jobs, store=store, folder=folder, watch=live, command=command
        )
    print_ranking(out, result)
    if json is not None:
        result.save_json(json)
        out.print(f"Numbers: {json}", soft_wrap=True)
    if csv is not None:
        result.save_csv(csv)
        out.print(f"Runs: {csv}", soft_wrap=True)
    if result.winner is not None:
        out.print(f"Winner: {result.winner} (use it: logitkit predict {result.winner} DATA)", soft_wrap=True)
    out.print(f"Report: {result.report(report).resolve()}", soft_wrap=True)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="Folder of a saved model, e.g. logitkit-runs/winner.")],
    data: Annotated[
        str, typer.Argument(help="Rows to predict: a file, folder or data source, with or without labels.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="A .parquet or .csv file.")] = Path(
        "predictions.parquet"
    ),
    trust_code: Annotated[
        bool, typer.Option(help="Allow the model to import the module its recipe names.")
    ] = False,
) -> None:
    """Predict with a saved model: one line per row, with class probabilities."""
    from logitkit.cli.predictions import write_predictions
    from logitkit.engine import load

    if output.suffix not in (".parquet", ".csv"):
        raise InputError(f"cannot write {output}: expected a name ending in .parquet or .csv.")
    _writable(output)
    rows = write_predictions(load(model, trust_code=trust_code), data, output)
    out.print(f"{rows} predictions: {output}")


@app.command(name="list")
def list_parts(
    room: Annotated[str | None, typer.Argument(help="Only this room.")] = None,
) -> None:
    """The parts there are, by room."""
    from logitkit.cli.terminal import print_parts

    print_parts(out, room)


@app.command()
def show(name: Annotated[str, typer.Argument(help="A part, e.g. ldr or losses/ldr.")]) -> None:
    """A part: what it is, how to call it, its equation, source and evidence."""
    from logitkit.cli.terminal import print_part

    print_part(out, name)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|ROOM]...", help="Parts or rooms.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every claim there is.")] = False,
    quick: Annotated[
        bool,
        typer.Option(
            help="One seed and a small budget: shows that the claims run, proves nothing and writes nothing."
        ),
    ] = False,
    jobs: Annotated[int, typer.Option(help="Claims at once.")] = 1,
    evidence: Annotated[Path, typer.Option(help="Where the evidence goes.")] = Path("evidence"),
) -> None:
    """Run the experiments behind the parts' claims and write down what they show."""
    from logitkit.claims import verify as run_claims
    from logitkit.cli.terminal import print_evidence

    if every == bool(names):
        raise InputError("name the parts or rooms to verify, or pass --all.")
    run_claims(
        names or None,
        quick=quick,
        jobs=jobs,
        folder=None if quick else evidence,
        watch=lambda evidence, done, total: print_evidence(out, evidence, f"[{done}/{total}] "),
    )


@app.command()
def bench(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="Benchmarks to run; all by default.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Where the numbers go, as JSON.")] = Path("logitkit-bench"),
    memory: Annotated[
        bool, typer.Option(help="Also measure peak memory, each arm in its own process.")
    ] = True,
    names_only: Annotated[bool, typer.Option("--list", help="Only list the benchmarks.")] = False,
) -> None:
    """Time logitkit's kernels against every peer that is installed, on this machine.

    pip install logitkit[bench] installs the peers.
    """
    from logitkit import bench as benchmarks
    from logitkit.cli.terminal import print_benchmark_case

    if names_only:
        for name in benchmarks.names():
            out.print(f"{name:24s}{(benchmarks.find(name).__doc__ or '').splitlines()[0]}")
        return
    for name in names or benchmarks.names():
        benchmarks.find(name)
    for name in names or benchmarks.names():
        result = benchmarks.run(name, memory=memory, watch=partial(print_benchmark_case, out, name))
        if result["absent"]:
            out.print(f"Not installed: {', '.join(result['absent'])} (pip install logitkit\\[bench])")
        out.print(f"Numbers: {benchmarks.save(result, folder)}", soft_wrap=True)


@app.callback(invoke_without_command=True)
def version(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if show_version:
        import logitkit

        out.print(f"logitkit {logitkit.__version__}")
        raise typer.Exit


def _writable(path: Path | None) -> None:
    """Refuse an output file that cannot be written before any work is done."""
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder.")
    if not path.resolve().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {path.resolve().parent}.")


def main() -> None:
    """Run the command line. A user's mistake is one sentence and exit code 2; Ctrl-C exits with 130."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        app()
    except InputError as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(2)
    except WorkerDied as error:
        err.print(f"[bold red]error:[/] {_escape(str(error))}", soft_wrap=True)
        sys.exit(1)
    except Stopped:
        resumes = sys.argv[1:2] == ["compare"]
        err.print(
            "Stopped. Finished runs are kept; the same command goes on from here."
            if resumes
            else "Stopped. What is finished is kept."
        )
        sys.exit(130)


def _stop(signum: int, frame: Any) -> None:
    raise Stopped


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
