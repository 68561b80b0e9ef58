# SPDX-License-Identifier: Apache-2.0
"""What ``omnistream evaluate`` does once its arguments are parsed: run, write, report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from omnistream_ros.evaluation import report, summary, terminal_table
from omnistream_ros.evaluation.cluster import evaluate_on_cluster
from omnistream_ros.evaluation.evaluate import INTERRUPTED, Options, evaluate, not_begun
from omnistream_ros.evaluation.live_comparison import measure_live
from omnistream_ros.evaluation.output_folder import output_folder
from omnistream_ros.evaluation.progress import ProgressBar, lengths
from omnistream_ros.evaluation.protocols import PROTOCOLS
from omnistream_ros.evaluation.recordings import FAULTS
from omnistream_ros.evaluation.sequence_result import SequenceResult


def run(
    paths: Sequence[Path],
    options: Options,
    out: Path,
    *,
    jobs: int = 1,
    ray: str | None = None,
    live: bool = False,
    say: Callable[[str], None] = print,
) -> bool:
    """Evaluate recordings and write ``report.html``, ``metrics.json`` and the files per sequence.

    Args:
        jobs: processes on this machine.
        ray: address of a Ray cluster to use instead.
        live: also play every recording to a real node in real time.
        say: told the table and where things are.

    Returns:
        Whether every recording was measured whole, and played whole if that was asked for.

    Raises:
        ValueError: ``live`` with predictions, which no node makes.
        OSError: ``out`` cannot be written.
        OutputFolderError: another process writes into it.
        ModelError: the model cannot be used.
    """
    if live and options.predictions is not None:
        raise ValueError(
            "--live plays the recordings to a node with a model: it cannot measure --predictions "
            "of others; leave out one of the two"
        )
    if len(paths) > 1:
        options = dataclasses.replace(options, predictions_by_name=True)
    # A folder that cannot be written should be known before the work, not after it.
    with output_folder(out):
        results = _measure(paths, options, jobs, ray, say)
        whole = all(result.status == "ok" for result in results)
        interrupted = any(
            result.status == "partial" or result.error == INTERRUPTED for result in results
        )
        if live and not interrupted:
            whole = _play_live(paths, options, out, results, say) and whole
        about = summary.surroundings(summary.command_line())
        about["notes"] = _protocol_notes(options, results)
        content = summary.summarise(results, about)
        # First of all: what has been measured is known even if it cannot be written.
        say(terminal_table.table(content))
        for note in about["notes"]:
            say(f"note: {note}")
        for result in results:
            for note in result.notes:
                say(f"note: {result.name}: {note}")
        try:
            summary.write_files(results, out, content)
            report.write_report(out / "report.html", content, results)
        except OSError as error:
            raise OSError(
                error.errno, f"{error.strerror}; the results are not written whole", str(out)
            ) from error
    say(f"\nreport: {out / 'report.html'}")
    return whole


def _measure(
    paths: Sequence[Path],
    options: Options,
    jobs: int,
    ray: str | None,
    say: Callable[[str], None],
) -> list[SequenceResult]:
    """All recordings, with a line for each when it is done."""
    results: list[SequenceResult] = []
    bar = ProgressBar([])
    try:
        bar = ProgressBar(lengths(paths, options))
        if ray is None:
            sequence = evaluate(paths, options, jobs, bar)
        else:
            sequence = evaluate_on_cluster(paths, options, ray, bar)
        for result in sequence:
            results.append(result)
            bar.close()
            say(f"{result.name}: {result.error or f'{len(result.rows)} frames'}")
    except KeyboardInterrupt:  # while a model was loaded, or the last frame was through
        results += [not_begun(path) for path in paths[len(results) :]]
    finally:
        bar.close()
    return results


def _play_live(
    paths: Sequence[Path],
    options: Options,
    out: Path,
    results: Sequence[SequenceResult],
    say: Callable[[str], None],
) -> bool:
    """Add the live runs to the results; one that fails is told and spoils nothing else.

    Returns:
        Whether none was interrupted.
    """
    folders = summary.sequence_folders(results)
    for path, folder, result in zip(paths, folders, results, strict=True):
        if result.status != "ok":
            continue
        say(f"{result.name}: live")
        place = out / folder / "live"
        try:
            result.live = measure_live(path, options, place, lambda line: say(f"... {line}"))
            say(f"{result.name}: live, {result.live}")
        except FAULTS as error:
            result.notes.append(f"the live run failed: {error}")
            say(f"{result.name}: the live run failed: {error}")
        except KeyboardInterrupt:
            result.notes.append("the live run was interrupted")
            return False
    return True


def _protocol_notes(options: Options, results: Sequence[SequenceResult]) -> list[str]:
    """What of the protocol's standard sequences is not there."""
    if options.protocol is None:
        return []
    missing = PROTOCOLS[options.protocol].missing([result.name for result in results])
    if not missing:
        return []
    return [f"not all sequences of protocol {options.protocol}: missing {', '.join(missing)}"]
