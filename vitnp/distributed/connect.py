"""Connect to a dask scheduler and its workers."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

from vitnp.distributed.cluster import Cluster
from vitnp.distributed.tasks import version_error, versions
from vitnp.errors import ClusterError, UsageError
from vitnp.kernels.threads.pool import resolve_n_threads

if TYPE_CHECKING:
    from distributed import Client, LocalCluster, Security

LOCAL = "local"

_CONNECT_SECONDS = 8

_DASK_SETTINGS = {
    # Rows in a task graph are intended: dask must keep them for the case that a worker is lost.
    "distributed.admin.large-graph-warning-threshold": "1 GB",
    # Keep restarting a local worker that is lost several times.
    "distributed.deploy.lost-worker-timeout": "1 day",
}


@contextlib.contextmanager
def connected(
    scheduler: str,
    *,
    cache: str | os.PathLike[str] | None = None,
    workers: int | None = None,
    security: Security | None = None,
) -> Iterator[Cluster]:
    """Connect to a cluster, as a context manager; at the end unfinished tasks are canceled.

    Tasks are pickles: whoever can reach a scheduler or a worker without TLS can run any code there, as its user.

    Parameters
    ----------
    scheduler : str
        Address of a dask scheduler, ``tcp://HOST:PORT`` or, with TLS, ``tls://HOST:PORT``, or "local" for processes on
        this machine.
    cache : path, optional
        Folder for features, which all machines see under the same path; required unless the scheduler is "local".
    workers : int, optional
        Number of processes for "local", see :func:`vitnp.kernels.threads.pool.resolve_n_threads`.
    security : distributed.Security, optional
        Certificates for ``tls://``. By default those of dask's configuration: a file, or the environment variables
        ``DASK_DISTRIBUTED__COMM__TLS__CA_FILE``, ``DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT`` and ``..._KEY``. The
        processes of "local" get certificates of their own if the package cryptography is installed.

    Yields
    ------
    Cluster

    Raises
    ------
    ClusterError
        If dask is not installed, no scheduler answers (the message says why), it has no workers, or one of them has
        other versions.
    UsageError
        If a cache is required and missing.

    Examples
    --------
    >>> with connected("tcp://desk:8786", cache="/shared/features") as cluster:          # doctest: +SKIP
    ...     segmenter = Segmenter(
    ...         cache="/shared/features", mapper=cluster.map, extractor=cluster.extract_to_store
    ...     ).fit(photographs)
    """
    if scheduler != LOCAL and cache is None:
        raise UsageError("other machines need a folder for features; give --cache a folder that all of them share")
    try:
        import dask
        import distributed
    except ImportError:
        raise ClusterError("--scheduler needs dask, which is not installed; run pip install 'vitnp[dask]'") from None
    with contextlib.ExitStack() as stack:
        stack.enter_context(dask.config.set(_DASK_SETTINGS))
        # Lost workers and connections are reported as ClusterError, in one sentence each.
        stack.enter_context(_quiet_logs())
        address = scheduler
        if scheduler == LOCAL:
            address = stack.enter_context(_local_cluster(workers))
            security = address.security
        else:
            security = security or distributed.Security()
            _check_scheduler(scheduler, security)
        try:
            client = distributed.Client(address, timeout=_CONNECT_SECONDS, set_as_default=False, security=security)
        except (OSError, TypeError, ValueError) as error:
            raise _no_answer(scheduler, _reason_of(error)) from None
        with client:
            _check_workers(client, scheduler)
            yield Cluster(client)


def _local_cluster(workers: int | None) -> LocalCluster:
    """Start processes on this machine, which only this user can reach if certificates can be made."""
    import distributed

    with _sigint_blocked():
        return distributed.LocalCluster(
            n_workers=resolve_n_threads(workers),
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            memory_limit=0,
            silence_logs=logging.CRITICAL,
            # Temporary certificates. Without them, every user of the machine can connect to its ports.
            security=True if importlib.util.find_spec("cryptography") else None,
        )


def _check_scheduler(scheduler: str, security: Security) -> None:
    """Check that a scheduler answers, because a client takes long to give up."""
    from distributed import rpc

    async def server_type() -> str:
        arguments = security.get_connection_args("client")
        async with rpc(scheduler, timeout=_CONNECT_SECONDS, connection_args=arguments) as remote:
            return (await remote.identity())["type"]

    async def in_time() -> str:
        return await asyncio.wait_for(server_type(), _CONNECT_SECONDS)

    # In a thread of its own, because notebooks already run an event loop in this one.
    with ThreadPoolExecutor(1) as pool:
        try:
            answer = pool.submit(asyncio.run, in_time()).result()
        except Exception as error:
            raise _no_answer(scheduler, _reason_of(error)) from None
    if answer != "Scheduler":
        raise _no_answer(scheduler, f"a dask {answer} does")


def _no_answer(scheduler: str, reason: str) -> ClusterError:
    """Return the error for a scheduler that does not answer."""
    if scheduler.startswith("tls://"):
        advice = (
            "check the address, and the certificates that DASK_DISTRIBUTED__COMM__TLS__CA_FILE, "
            "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT and DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY name"
        )
    else:
        advice = "start one with `dask scheduler`, or check the address"
    return ClusterError(f"no dask scheduler answers at {scheduler} ({reason}); {advice}")


def _reason_of(error: BaseException) -> str:
    """Return the innermost reason in a chain of exceptions, in one line."""
    reason = ""
    link: BaseException | None = error
    seen: list[BaseException] = []
    while link is not None and link not in seen:
        seen.append(link)
        text = getattr(link, "strerror", None) or re.sub(r"^in <.*>: ", "", str(link))
        text = text.replace("Stream is closed", "").strip()
        reason = text.removesuffix(".") or reason
        link = link.__cause__ or link.__context__
    if "ssl_context" in reason:  # dask's way to say so
        return "no certificates are given for TLS"
    return " ".join(reason.split())[:300] or type(error).__name__


def _check_workers(client: Client, scheduler: str) -> None:
    """Check that there are workers, and that scheduler and workers have the versions of this process."""
    import distributed

    try:
        client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
    except distributed.TimeoutError:
        raise ClusterError(f"{scheduler} has no workers; start some with `dask worker {scheduler}`") from None
    # The scheduler unpickles what is sent, so it needs vitnp as well.
    machines: dict[str, dict[str, str] | Exception] = {"the dask scheduler": _versions_by(client.run_on_scheduler)}
    for worker, theirs in client.run(versions, on_error="return").items():
        machines[f"the worker {worker}"] = theirs
    ours = versions()
    for name, theirs in machines.items():
        if theirs != ours:
            raise version_error(name, theirs, ours)


def _versions_by(run: Callable[[Callable[[], Any]], Any]) -> dict[str, str] | Exception:
    try:
        return run(versions)
    except ImportError as error:
        return error


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    logger = logging.getLogger("distributed")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT in processes that are started inside.

    Ctrl-C reaches all processes of a terminal; only this one shall react, and end the others.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
