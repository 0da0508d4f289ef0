"""Show how a run went, or compare runs: one page and its pictures.

    chatsft report runs/sft
    chatsft report runs/a runs/b runs/c --output comparison.html

Of one run the page is RUN_DIR/report.html and the pictures are in RUN_DIR/report; a comparison is ./comparison.html unless --output
says otherwise. Scores come from the files in RUN_DIR that chatsft eval --output wrote, of the base model and of the trained one.
"""

import argparse
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from chatsft.program import exit_code
from chatsft.run_report.page import final_rows, save_report
from chatsft.run_report.run import ReportError, Run, read_run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; return its exit code."""
    options = make_parser().parse_args(argv)
    return exit_code(lambda: report(options.runs, options.output))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="chatsft report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN_DIR", help="output_dir of a run; several are compared with the first")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where the page goes")
    return parser


def report(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the page and the pictures of runs, print their last figures, and return where the page is."""
    if output is not None and output.suffix != ".html":
        raise ReportError(f"--output is {output}, but the page is an HTML file. Give it a name that ends in .html.")
    if importlib.util.find_spec("matplotlib") is None:
        raise ReportError("the pictures need matplotlib. Install it: pip install 'chatsft[report]'.")
    from chatsft.run_report.figures import draw_figures

    runs = [read_run(folder, name) for folder, name in zip(folders, short_names(folders), strict=True)]
    pictures = draw_figures(runs)
    path = output or (runs[0].folder / "report.html" if len(runs) == 1 else Path("comparison.html"))
    save_report(path, runs, pictures)
    folder = pictures_folder(path)
    folder.mkdir(exist_ok=True)
    for name, picture in pictures.items():
        (folder / f"{name}.png").write_bytes(picture)
    print(format_finals(runs))
    print(f"Wrote {path} and its pictures in {folder}")
    return path


def pictures_folder(page: Path) -> Path:
    """Return the folder beside a page that its pictures go to."""
    return page.with_suffix("")


def short_names(folders: Sequence[Path]) -> list[str]:
    """Name runs by the ends of their paths, as short as tells them apart.

    >>> short_names([Path("a/first/out"), Path("a/second/out")])
    ['first/out', 'second/out']
    """
    paths = [folder.resolve() if folder.name in ("", "..") else folder for folder in folders]
    longest = max(len(path.parts) for path in paths)
    names = [["/".join(path.parts[-length:]) for path in paths] for length in range(1, longest + 1)]
    return next((short for short in names if len(set(short)) == len(short)), names[-1])


def format_finals(runs: Sequence[Run]) -> str:
    """Lay out the last figures, one column a run."""
    rows = [("", [run.name for run in runs]), *final_rows(runs)]
    widths = [max(len(values[column]) for _, values in rows) for column in range(len(runs))]
    lines = [f"{label:<18}" + "  ".join(value.rjust(width) for value, width in zip(values, widths, strict=True)) for label, values in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
