"""Start the server: where it listens, whether people must sign in, one process or several."""

import itertools
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import select

from sayso.base.errors import UserError
from sayso.feedback import work_tables as work
from sayso.feedback.database import Database
from sayso.study.study import Study
from sayso.web.app import create_app
from sayso.web.connections import GuardedProtocol, Limits, guarded, limits_of_this_machine
from sayso.web.filesystems import refuse_network
from sayso.web.proxies import check_root_path
from sayso.web.site import Site, is_loopback
from sayso.web.work import checks, people
from sayso.web.work.opening import open_task
from sayso.web.work.tasks import TaskOptions

ATTENTION_SHARE = 0.1
"""Of the pages of those who sign in, if nothing else is said."""

_ENVIRONMENT = "SAYSO_SERVE"
"""How worker processes are told what to serve."""


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the server listens; `workers` above 1 need PostgreSQL."""

    host: str = "127.0.0.1"
    port: int = 8321
    workers: int = 1
    browser: bool = True


@dataclass(frozen=True, slots=True)
class _Served:
    """What a worker process needs to know."""

    study: str
    url: str
    task: str
    local: bool
    split_tie: bool
    root_path: str


def prepare(study: Study, url: str, options: TaskOptions, root_path: str = "") -> Site:
    """Open the store and the task.

    Without an `attention_share` in the options there are no checks for the local rater, and
    `ATTENTION_SHARE` for those who sign in.

    Args:
        url: the database to keep the votes in from now on; "" is the study's own.
        root_path: under which a proxy serves the site; "" is none.
    Raises: UserError: for no path of a site; if the store or the images are not there, or it lies
        on a network drive.
    """
    root_path = check_root_path(root_path)
    if url:
        study.use_database(url)
    database = Database(study.feedback.database.url, keep_open=True)
    if database.file is not None:
        refuse_network(database.file)
    with database.write() as db:
        local = not people.must_sign_in(db)
        if local:
            people.local_person(db)
    if options.attention_share is None:
        options = replace(options, attention_share=0.0 if local else ATTENTION_SHARE)
    if not options.gold:
        options = replace(options, gold_share=0.0)
    task = open_task(database, study, options)
    study.secret()
    return Site(study, database, task, local, split_tie=options.split_tie, root_path=root_path)


def serve(site: Site, listening: Listening) -> None:
    """Serve until stopped.

    Raises: UserError: for an address that is in use or not for this mode.
    """
    check(site.local, site.database, listening)
    # bound first: a start that fails says nothing else
    with _listener(listening.host, listening.port) as listener:
        address = f"http://{_shown(listening.host)}:{listening.port}{site.root_path}/"
        _say(site, address)
        if listening.browser and site.local:
            threading.Thread(target=_browse, args=(address,), daemon=True).start()
        _run(site, listening, listener)


def check(local: bool, database: Database, listening: Listening) -> None:
    """Refuse what cannot work or is not safe.

    Raises: UserError: with what to do instead.
    """
    if local and not is_loopback(listening.host):
        raise UserError(
            f"--host {listening.host} is open to others, but nobody has to sign in yet; add raters "
            "first with: sayso raters STUDY add NAME, or keep --host 127.0.0.1"
        )
    if listening.workers < 1 or (listening.workers > 1 and database.file is not None):
        raise UserError(
            f"--workers {listening.workers} is not possible with SQLite, which allows one "
            "process to write; give --workers 1, or --db postgresql+psycopg://USER@HOST/NAME"
        )
    refuse_taken(listening)


def refuse_taken(listening: Listening) -> None:
    """Raises: UserError: if the port is in use, with a free one."""
    if not _is_free(listening.host, listening.port):
        raise UserError(
            f"port {listening.port} is in use; choose another, such as --port "
            f"{free_port(listening.host, listening.port)}"
        )


def _is_free(host: str, port: int) -> bool:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OverflowError:
            raise UserError(f"--port {port} is not allowed; give 1 to 65535") from None
        except OSError as error:
            if error.errno == 98 or "in use" in str(error):
                return False
            raise UserError(f"cannot listen on {host}:{port} ({error.strerror})") from None
    return True


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def free_port(host: str, port: int) -> int:
    """The next port after `port` that nobody uses; after the last one come those from 1024."""
    ports = itertools.chain(range(port + 1, 65536), range(1024, port))
    return next(p for p in ports if _is_free(host, p))


def _shown(host: str) -> str:
    named = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
    return f"[{named}]" if ":" in named else named


def _say(site: Site, address: str) -> None:
    who = "no sign-in, this machine only" if site.local else "raters sign in with their links"
    print(f"Rating {site.study.path} at {address} ({who}); stop with Ctrl-C", flush=True)
    _say_checks(site, address)


def _say_checks(site: Site, address: str) -> None:
    with site.read() as db:
        task = db.execute(select(work.tasks).where(work.tasks.c.id == site.task)).mappings().one()
        n = checks.tally(db, site.task)
    if not task["attention_share"]:
        return
    later = f" ({n.later} of them after others have rated the image)" if n.later else ""
    print(
        f"Attention checks: {n.used} in use{later}, {n.proposed} proposed, {n.struck} struck",
        flush=True,
    )
    warning = checks.warning(task["kind"], n)
    if warning:
        print(f"Warning: {warning} ({address}admin/checks)", file=sys.stderr, flush=True)


def _browse(address: str) -> None:
    time.sleep(0.8)
    webbrowser.open(address)


@contextmanager
def served(site: Site) -> Iterator[int]:
    """Serve in the background while the block runs, on a free port of this machine: the port."""
    import uvicorn

    with _listener("127.0.0.1", 0) as listener:
        server = uvicorn.Server(uvicorn.Config(create_app(site), **server_options()))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()
            site.database.close()


def server_options(limits: Limits | None = None) -> dict[str, Any]:
    """uvicorn's options; connections share the limits, by default those of this machine."""
    limits_of_this_machine()  # raises that on files, which workers inherit
    return {
        "log_level": "warning", "access_log": False, "server_header": False,
        "timeout_graceful_shutdown": 5, "timeout_keep_alive": 75,
        "http": guarded(limits) if limits else GuardedProtocol,
        "backlog": 128,  # so many are accepted at once, before any of them is counted
    }  # fmt: skip


def _run(site: Site, listening: Listening, listener: socket.socket) -> None:
    import uvicorn

    common = {"host": listening.host, "port": listening.port, **server_options()}
    if listening.workers == 1:
        server = uvicorn.Server(uvicorn.Config(create_app(site), **common))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
        return
    url = site.database.url.render_as_string(hide_password=False)
    served = _Served(str(site.study.path), url, site.task, site.local, site.split_tie,
                     site.root_path)  # fmt: skip
    os.environ[_ENVIRONMENT] = json.dumps(asdict(served))
    site.database.close()
    app = f"{__name__}:app_of_worker"
    workers = {"factory": True, "workers": listening.workers, "fd": listener.fileno()}
    uvicorn.run(app, **common, **workers)


def _listener(host: str, port: int) -> socket.socket:
    """A socket to serve on, which workers can share; the connections inherit its options."""
    try:
        listener = socket.create_server((host, port), family=_family(host))
    except OSError:  # another one was faster
        raise UserError(f"port {port} is in use; choose another with --port") from None
    # without it a reply waits 40 ms for the browser's delayed acknowledgement of its headers
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def app_of_worker() -> FastAPI:
    """The app in a worker process."""
    logging.basicConfig(level=logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    served = _Served(**json.loads(os.environ[_ENVIRONMENT]))
    study = Study.open(Path(served.study))
    database = Database(served.url, keep_open=True)
    site = Site(
        study, database, served.task, served.local, split_tie=served.split_tie,
        root_path=served.root_path,
    )  # fmt: skip
    return create_app(site)


def _end_with_parent() -> None:
    """A worker whose parent was killed would keep the port, and no one would look after it."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    multiprocessing.connection.wait([parent.sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(10)
    os._exit(1)
