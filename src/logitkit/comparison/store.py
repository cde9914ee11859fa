"""Where results live, so that several processes and machines share one study and nothing is run twice.

Results are Optuna trials in Optuna's own tables: one trial per finished run, one inner study per tuned run.
Beside them, in the same database, a table of claims says who is working on what. A claim is one INSERT
against a primary key, and taking over a dead worker's claim one UPDATE that names the dead owner, so both
are atomic on SQLite and PostgreSQL alike. (Optuna's own queue is not: on SQLite two processes can pop the
same waiting trial.)
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.storages import RDBStorage
from optuna.trial import TrialState, create_trial

from logitkit.errors import InputError, MissingExtra

optuna.logging.set_verbosity(optuna.logging.WARNING)

BEAT = 15.0  # seconds between two signs of life
GRACE = 120.0  # a worker on another machine that gave no sign for so long is dead
LOCK_TIMEOUT = 30.0  # how long SQLite waits for another writer

_schema = sa.MetaData()
_claims = sa.Table(
    "logitkit_claims",
    _schema,
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("owner", sa.String(255), nullable=False),
    sa.Column("beat", sa.Float, nullable=False),
)


def database_url(store: str | Path) -> str:
    """A database URL from a URL, or from the path of a SQLite file."""
    text = str(store)
    if "://" not in text:
        return f"sqlite:///{Path(text).resolve()}"
    scheme, rest = text.split("://", 1)
    if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
        try:
            import psycopg  # noqa: F401
        except ImportError:
            raise MissingExtra("psycopg", "postgres", "a PostgreSQL store") from None
        return f"postgresql+psycopg://{rest}"
    if scheme.split("+")[0] != "sqlite":
        raise InputError(
            f"store={scheme}://...: expected a file, sqlite:///FILE or postgresql://USER@HOST/DATABASE."
        )
    return text


class Store:
    """One study in one database.

    Raises InputError, with one sentence, when the database is unreachable, locked or not a database.
    """

    def __init__(self, store: str | Path, study: str = "logitkit") -> None:
        self.url = database_url(store)
        self.study = study
        if self.url.startswith("sqlite:///"):
            folder = Path(self.url.removeprefix("sqlite:///")).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(
                    f"the store cannot be made: {folder} is not a folder ({error.strerror})."
                ) from None
        self.owner = f"{_machine()}/{os.getpid()}/{_started(os.getpid())}/{uuid.uuid4().hex[:8]}"
        with self._errors():
            for attempt in range(4):
                try:
                    self._storage = RDBStorage(self.url, engine_kwargs=_engine_options(self.url))
                    self._study = optuna.create_study(
                        study_name=study, storage=self._storage, direction="maximize", load_if_exists=True
                    )
                    _schema.create_all(self._storage.engine)
                    break
                except (sa.exc.ProgrammingError, sa.exc.IntegrityError, sa.exc.OperationalError) as error:
                    # Two processes may create the tables of an empty database at the same moment.
                    if attempt == 3 or not any(s in str(error).lower() for s in ("exist", "unique")):
                        raise
                    time.sleep(0.2 * (attempt + 1))
        self._beating: set[str] = set()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def claim(self, keys: Iterable[str]) -> str | None:
        """The first of `keys` that is neither finished nor in a living worker's hands, now ours; or None."""
        with self._errors():
            finished = self.finished()
            with self._storage.engine.connect() as connection:
                rows = connection.execute(sa.select(_claims)).mappings().all()
            held = {row["key"]: row for row in rows}
            for key in keys:
                if key in finished:
                    continue
                if key not in held:
                    taken = self._insert(key)
                else:
                    taken = self._is_dead(held[key]) and self._take_over(key, held[key]["owner"])
                if taken:
                    # Between our look and our claim its last owner may have finished it.
                    if key in self.finished():
                        self.release(key)
                        continue
                    self._beat_for(key)
                    return key
        return None

    def finish(self, key: str, value: float | None, result: dict[str, Any]) -> None:
        """Record the result of a run we hold. A run that another has taken over meanwhile is dropped."""
        with self._errors():
            if not self._still_ours(key):
                self._stop_beating(key)
                return
            done = value is not None
            self._study.add_trial(
                create_trial(
                    state=TrialState.COMPLETE if done else TrialState.PRUNED,
                    value=value,
                    user_attrs={"key": key, "result": json.dumps(result)},
                )
            )
            self.release(key)

    def release(self, key: str) -> None:
        """Give a claim back."""
        self._stop_beating(key)
        with self._errors(), self._storage.engine.begin() as connection:
            connection.execute(_claims.delete().where(_claims.c.key == key, _claims.c.owner == self.owner))

    def release_all(self) -> None:
        """Give back everything this process holds."""
        for key in list(self._beating):
            self.release(key)

    def disconnect(self) -> None:
        """Close the connections, which a forked process must not share; the next use opens new ones."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def finished(self) -> set[str]:
        """Keys that have a result."""
        return {t.user_attrs["key"] for t in self._trials()}

    def results(self, keys: Iterable[str]) -> dict[str, dict[str, Any]]:
        """The results there are for `keys`."""
        wanted = set(keys)
        found: dict[str, dict[str, Any]] = {}
        with self._errors():
            for trial in self._trials():
                key = trial.user_attrs["key"]
                if key in wanted and key not in found:
                    found[key] = json.loads(trial.user_attrs["result"])
        return found

    def running(self) -> int:
        """How many runs living workers hold."""
        with self._errors(), self._storage.engine.connect() as connection:
            rows = connection.execute(sa.select(_claims)).mappings().all()
        return sum(not self._is_dead(row) for row in rows)

    def tuning_study(self, key: str, sampler: optuna.samplers.BaseSampler) -> optuna.Study:
        """The inner study that holds the tuning trials of run `key`."""
        with self._errors():
            return optuna.create_study(
                study_name=f"{self.study}/tune/{key}", storage=self._storage, direction="maximize",
                sampler=sampler, load_if_exists=True,
            )  # fmt: skip

    def _trials(self) -> list[optuna.trial.FrozenTrial]:
        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return [t for t in self._study.get_trials(deepcopy=False, states=states) if "key" in t.user_attrs]

    def _insert(self, key: str) -> bool:
        try:
            with self._storage.engine.begin() as connection:
                connection.execute(_claims.insert().values(key=key, owner=self.owner, beat=time.time()))
        except sa.exc.IntegrityError:
            return False
        return True

    def _take_over(self, key: str, owner: str) -> bool:
        update = _claims.update().where(_claims.c.key == key, _claims.c.owner == owner)
        with self._storage.engine.begin() as connection:
            return connection.execute(update.values(owner=self.owner, beat=time.time())).rowcount == 1

    def _still_ours(self, key: str) -> bool:
        return self._take_over(key, self.owner)

    @staticmethod
    def _is_dead(claim: Any) -> bool:
        machine, pid, started, _ = claim["owner"].rsplit("/", 3)
        if machine == _machine():
            return _started(int(pid)) != started
        return time.time() - claim["beat"] > GRACE

    def _beat_for(self, key: str) -> None:
        with self._lock:
            self._beating.add(key)
            if self._thread is None:
                self._thread = threading.Thread(target=self._heartbeat, daemon=True)
                self._thread.start()

    def _stop_beating(self, key: str) -> None:
        with self._lock:
            self._beating.discard(key)

    def _heartbeat(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                keys = list(self._beating)
            for key in keys:
                try:
                    self._still_ours(key)
                except sa.exc.SQLAlchemyError:
                    # A beat that fails is a beat missed; the run's own writes will report a lost database.
                    continue

    def _errors(self) -> _StoreErrors:
        return _StoreErrors(self.url)


class _StoreErrors:
    """Turns the database's errors into one sentence."""

    def __init__(self, url: str) -> None:
        self.url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, sa.exc.SQLAlchemyError):
            cause = cause.__cause__ or cause.__context__
        if error is None or cause is None or isinstance(error, InputError):
            return
        text = str(getattr(cause, "orig", None) or cause).strip().splitlines()[0]
        where = sa.engine.make_url(self.url).render_as_string(hide_password=True)
        if "locked" in text:
            why = "is locked by another process; wait for it or name another store"
        elif "not a database" in text or "malformed" in text:
            why = "is not a database or is damaged; move it away or name another store"
        elif "unable to open" in text or "readonly" in text:
            why = "cannot be opened for writing"
        else:
            why = f"cannot be reached or used ({text})"
        raise InputError(f"the store {where} {why}.") from error


def _engine_options(url: str) -> dict[str, Any]:
    if url.startswith("sqlite"):
        return {"connect_args": {"timeout": LOCK_TIMEOUT}}
    return {"connect_args": {"connect_timeout": 10}, "pool_pre_ping": True}


def _machine() -> str:
    """This machine as other processes that see the same process numbers know it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    space = Path("/proc/self/ns/pid")
    parts = [platform.node(), boot.read_text().strip() if boot.exists() else ""]
    parts.append(os.readlink(space) if space.is_symlink() else "")
    return ":".join(parts)


def _started(pid: int) -> str:
    """When process `pid` started, so that a reused number is not mistaken for the old process; "" if none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        if Path("/proc/self").exists():
            return ""
        try:  # no /proc (macOS): the number alone must do
            os.kill(pid, 0)
        except OSError:
            return ""
        return "alive"
    fields = stat.rsplit(")", 1)[1].split()
    return "" if fields[0] == "Z" else fields[19]
