# SPDX-License-Identifier: Apache-2.0
"""Evaluation spread over a Ray cluster, an optional extra (``pip install ray``).

Every machine of the cluster needs this package and the recordings under the same paths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from omnistream_ros.evaluation.evaluate import Options, Progress, evaluate_one, not_begun
from omnistream_ros.evaluation.sequence_result import SequenceResult


def evaluate_on_cluster(
    paths: Sequence[Path], options: Options, address: str, progress: Progress
) -> Iterator[SequenceResult]:
    """Evaluate recordings on a cluster, and yield the results in the order given.

    A recording whose machine is lost is reported as failed. After Ctrl-C the ones that are not done
    are cancelled and reported as failed.

    Args:
        address: of the cluster, such as ``ray://head:10001``; ``local`` starts one on this machine.

    Raises:
        ModuleNotFoundError: ray is not installed.
        ConnectionError: no cluster at the address.
    """
    import ray

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    try:
        work = ray.remote(num_cpus=options.threads, max_retries=1)(evaluate_one)
        absolute = [path.resolve() for path in paths]
        futures = [work.remote(path, options) for path in absolute]
        interrupted = False
        for path, future in zip(absolute, futures, strict=True):
            if interrupted:
                yield not_begun(path)
                continue
            try:
                result = ray.get(future)
            except KeyboardInterrupt:
                interrupted = True
                for waiting in futures:
                    ray.cancel(waiting)
                result = not_begun(path)
            except ray.exceptions.RayError as error:
                text = f"lost on the cluster: {str(error).splitlines()[0]}"
                result = SequenceResult(path.name, str(path), "failed", error=text)
            progress(path.name, len(result.rows), len(result.rows))
            yield result
    finally:
        ray.shutdown()
