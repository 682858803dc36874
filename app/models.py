"""The shared vocabulary: one class per table of schema.sql, and the verbs people use on them.

schema.sql owns the tables; nothing here creates any, and a test compares the two. Queries start
from the owner (``Endpoint.of(tenant_id)``), so that "another tenant's" and "does not exist" are the
same answer by construction.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Self

from peewee import (
    JOIN,
    SQL,
    BigAutoField,
    BigIntegerField,
    BlobField,
    BooleanField,
    Case,
    Expression,
    FloatField,
    IntegerField,
    Model,
    ModelSelect,
    SmallIntegerField,
    TextField,
    fn,
)
from playhouse.postgres_ext import ArrayField, BinaryJSONField, DateTimeTZField

from app import errors
from app.db import db

LARGEST_ID = 2**53 - 1
ID_EPOCH_MS = 1735689600000  # 2025-01-01 UTC; schema.sql, "ids"

# What an endpoint can be in, and what a task can be in; schema.sql explains each transition.
ENDPOINT_STATUSES = ("pending", "active", "paused", "disabled", "deleted")
DISABLED_REASONS = ("gone", "failing")
TASK_STATUSES = ("pending", "delivering", "retry", "waiting", "delivered", "failed", "canceled")
OPEN_TASK_STATUSES = ("pending", "delivering", "retry", "waiting")
# What a replay and a bulk retry can be in; and which past events a replay can be narrowed to.
WALK_STATUSES = ("running", "finished", "canceled")
REPLAY_ONLY = ("failed", "missing")

# How an attempt or a task failed: the closed vocabulary of schema.sql.
FAILURES = (
    "dns", "connect", "tls", "timeout", "blocked_address", "too_large", "redirect", "http_4xx",
    "http_5xx", "reset", "bad_response", "unsendable", "interrupted", "expired",
)  # fmt: skip

# What is shown together with an event or a task.
MOST_TASKS_SHOWN = 500
MOST_ATTEMPTS_SHOWN = 100

# A live task is made in the statement that makes its event.
MADE_WITHIN = timedelta(seconds=10)

# Of the tasks that wait for an endpoint, at most so many are counted.
MOST_WAITING_COUNTED = 10_000

# The states of which one must be an endpoint's present one for a change to be made, by their names
# as in ``Endpoint.etag``; ``{"*"}`` for whichever, None for no condition at all.
IfMatch = frozenset[str] | None

# The operator as a tenant: its endpoints hear of everybody's operational events.
OPERATOR = 0

# What a tenant may have a limit of its own for, and the largest one (schema.sql, "tenants").
TENANT_LIMITS: Mapping[str, int] = {
    "requests_per_second": 100_000,
    "registrations_per_minute": 100_000,
    "replays_per_minute": 100_000,
    "events_per_second": 1_000_000,
    "endpoints": 1_000,
}

# Nothing is held against an endpoint any more: it takes its tasks, and without a ramp.
WELL: Mapping[str, Any] = {
    "failures": 0,
    "failing_since": None,
    "hold_until": None,
    "recovered_at": None,
}


class Table(Model):
    """A table of the schema ``hookjetty``."""

    class Meta:
        database = db
        schema = "hookjetty"
        legacy_table_names = False


class Tenant(Table):
    """A customer of the platform, known here since its first endpoint or limit of its own."""

    id = BigIntegerField(primary_key=True)
    created_at = DateTimeTZField()
    # Limits of its own; None: as for everybody (``ratelimit.Limits``).
    requests_per_second = IntegerField(null=True)
    registrations_per_minute = IntegerField(null=True)
    replays_per_minute = IntegerField(null=True)
    events_per_second = IntegerField(null=True)
    endpoints = IntegerField(null=True)

    class Meta:
        table_name = "tenants"

    @classmethod
    def lock(cls, tenant_id: int) -> datetime:
        """Let nobody else change the tenant's endpoints or limits until this transaction ends.

        Makes its row if there is none. Returns the time.
        """
        query = cls.select(fn.clock_timestamp()).where(cls.id == tenant_id)
        now: datetime | None = None
        while now is None:  # an erasure may delete the row between the two statements
            cls.insert(id=tenant_id).on_conflict_ignore().execute()
            now = query.for_update().scalar()
        return now

    @classmethod
    def most_endpoints(cls, tenant_id: int, otherwise: int) -> int:
        """How many endpoints it may have at a time: its own limit, or that of everybody."""
        own: int | None = cls.select(cls.endpoints).where(cls.id == tenant_id).scalar()
        return own or otherwise

    @property
    def own_limits(self) -> dict[str, int]:
        """The limits that are its own."""
        own = {name: getattr(self, name) for name in TENANT_LIMITS}
        return {name: value for name, value in own.items() if value is not None}


class Endpoint(Table):
    """A URL a tenant wants called."""

    id = BigAutoField()
    tenant_id = BigIntegerField()
    url = TextField()
    url_key = TextField()
    events = ArrayField(TextField, index=False)
    description = TextField(null=True)
    metadata = BinaryJSONField(index=False)
    status = TextField()
    reason = TextField(null=True)
    secret = TextField()
    retired_secrets = BinaryJSONField(index=False)
    version = BigIntegerField()
    created_at = DateTimeTZField()
    updated_at = DateTimeTZField()
    handshake_at = DateTimeTZField(null=True)
    handshake_tries = IntegerField()
    handshake_failure = TextField(null=True)
    verified_at = DateTimeTZField(null=True)
    checks_signatures = BooleanField()
    verifies_signatures = BooleanField(null=True)
    failures = IntegerField()
    failing_since = DateTimeTZField(null=True)
    hold_until = DateTimeTZField(null=True)
    recovered_at = DateTimeTZField(null=True)
    slots = SmallIntegerField(null=True)
    timeout_seconds = FloatField(null=True)
    retry_schedule = ArrayField(FloatField, index=False, null=True)
    settling = BooleanField()

    class Meta:
        table_name = "endpoints"

    @classmethod
    def of(cls, tenant_id: int) -> ModelSelect[Self]:
        """A tenant's endpoints in every state but deleted, oldest first."""
        return (
            cls.select().where(cls.tenant_id == tenant_id, cls.status != "deleted").order_by(cls.id)
        )

    @classmethod
    def get_of(cls, tenant_id: int, endpoint_id: int, *, lock: bool = False) -> Self:
        """One of a tenant's endpoints, or ``not_found``; its row locked if so wanted."""
        query = cls.of(tenant_id).where(cls.id == endpoint_id)
        endpoint = query.for_update(lock).first()
        if endpoint is None:
            raise errors.not_found(f"endpoint ep_{endpoint_id}")
        return endpoint

    @classmethod
    def get_to_change(cls, tenant_id: int, endpoint_id: int, if_match: IfMatch = None) -> Self:
        """The same with its row locked, if it is in a state that the caller wants to change."""
        endpoint = cls.get_of(tenant_id, endpoint_id, lock=True)
        endpoint.must_match(if_match)
        return endpoint

    @classmethod
    def get_live(cls, endpoint_id: int) -> Self:
        """An endpoint of whatever tenant, for an admin; ``not_found`` for a deleted one too."""
        endpoint = cls.get_or_none(cls.id == endpoint_id, cls.status != "deleted")
        if endpoint is None:
            raise errors.not_found(f"endpoint {endpoint_id}")
        return endpoint

    @classmethod
    def inactive_ids(cls, tenant_id: int) -> tuple[list[int], list[int], list[int]]:
        """A tenant's endpoints whose tasks are not to be sent.

        Those that are there but not active, those of them whose tasks have yet to follow, and the
        deleted ones whose tasks have yet to follow.
        """
        parked = list(cls.of(tenant_id).where(cls.status != "active"))
        gone = cls.select(cls.id).where(
            cls.settling, cls.tenant_id == tenant_id, cls.status == "deleted"
        )
        return (
            [endpoint.id for endpoint in parked],
            [endpoint.id for endpoint in parked if endpoint.settling],
            [endpoint.id for endpoint in gone],
        )

    @classmethod
    def ids_since(
        cls, tenant_id: int, moment: datetime, most_deleted: int | None = None
    ) -> list[int]:
        """A tenant's endpoints that were live at that moment or later; of those that are deleted
        by now, the latest so many.
        """
        its = cls.select(cls.id).where(cls.tenant_id == tenant_id)
        live = its.where(cls.status != "deleted")
        deleted = its.where(cls.status == "deleted", cls.updated_at >= moment)
        deleted = deleted.order_by(cls.updated_at.desc()).limit(most_deleted)
        return [endpoint.id for endpoint in (*live, *deleted)]

    @classmethod
    def change(cls, endpoint_id: int, **columns: Any) -> Self | None:
        """Write a change made by a person; None when the endpoint is deleted meanwhile.

        Bumps ``version``, so that a handshake under way for the state before is void, and lets the
        settling job look whether the endpoint's open tasks still fit.
        """
        rows = (
            cls.update(**columns, version=cls.version + 1, updated_at=fn.now(), settling=True)
            .where(cls.id == endpoint_id, cls.status != "deleted")
            .returning(cls)
            .execute()
        )
        changed = next(iter(rows), None)
        if changed is not None:
            wake()
        return changed

    @classmethod
    def delete_of(cls, endpoint: Endpoint) -> Endpoint:
        """Delete an endpoint: answered at once, its open tasks are canceled by the settling job.

        The row stays while its tasks can be listed; ``not_found`` when somebody was faster.
        """
        with db.atomic():
            gone = cls.change(endpoint.id, status="deleted", reason=None, handshake_at=None, **WELL)
            if gone is None:
                raise errors.not_found(f"endpoint {endpoint.id}")
            Replay.update(status="canceled", finished_at=fn.now()).where(
                Replay.endpoint_id == endpoint.id, Replay.status == "running"
            ).execute()
        return gone

    @property
    def etag(self) -> str:
        """Names its state as people have made it: every change of theirs gives it another one.

        What dispatchers write (health, an answered challenge, `disabled`) leaves it as it is.
        """
        return f"ep_{self.id}.{self.version}"

    def must_match(self, if_match: IfMatch) -> None:
        """``version_conflict`` unless it is in one of the states that the caller has seen."""
        if if_match is not None and not if_match & {self.etag, "*"}:
            raise errors.conflict(
                f'endpoint ep_{self.id} has changed: it is "{self.etag}" now; read it again'
            )

    @property
    def verification(self) -> dict[str, Any] | None:
        """How the handshake stands while the endpoint is pending (design: Handshake), and why a
        check of an active one found out nothing.
        """
        if self.status != "pending" and self.handshake_failure is None:
            return None
        return {"failure": self.handshake_failure, "next_try_at": self.handshake_at}

    @property
    def is_being_asked(self) -> bool:
        """Whether an answer of its receiver is due that was not asked for before."""
        if self.status == "pending":
            return self.handshake_failure is None
        return self.checks_signatures and self.handshake_at is not None

    @property
    def waiting(self) -> int:
        """How many tasks wait for it; ``MOST_WAITING_COUNTED`` stands for that many or more."""
        return Task.count_waiting(self)


class Event(Table):
    """Something that happened. ``data`` is read as the very text that came in; None: erased."""

    id = BigIntegerField(primary_key=True)
    tenant_id = BigIntegerField()
    type = TextField()
    data = TextField(null=True)
    fanout = IntegerField()
    xid = BigIntegerField()
    endpoint_id = BigIntegerField(null=True)

    class Meta:
        table_name = "events"

    @classmethod
    def select_text(cls) -> ModelSelect[Self]:
        """Events with their data as text."""
        return cls.select(
            cls.id,
            cls.tenant_id,
            cls.type,
            cls.data.cast("text").alias("data"),
            cls.fanout,
            cls.endpoint_id,
        )

    @classmethod
    def get_of(cls, tenant_id: int, event_id: int) -> Self:
        """One of a tenant's events with its data as text, or ``not_found``."""
        event = cls.select_text().where(cls.id == event_id, cls.tenant_id == tenant_id).first()
        if event is None:
            raise errors.not_found(f"event evt_{event_id}")
        return event

    @property
    def created_at(self) -> datetime:
        """When it was published, to the millisecond."""
        return id_time(self.id)

    @property
    def is_test(self) -> bool:
        """Whether it was made to try an endpoint, and for that one alone."""
        return self.endpoint_id is not None

    @property
    def is_erased(self) -> bool:
        """Whether its data was erased."""
        return self.data is None

    @staticmethod
    def type_condition(pattern: str) -> tuple[str, dict[str, Any]]:
        """That an event ``e`` is of a type (``export.done``, ``export.*``, ``*``), as SQL.

        With the parameters of that.
        """
        prefix = pattern.removesuffix("*")
        test = "e.type = %(type)s" if prefix == pattern else "starts_with(e.type, %(type)s)"
        return test, {"type": prefix}

    @property
    def key(self) -> str | None:
        """The key that it was published with."""
        return keys_of([self.id]).get(self.id)

    @property
    def tasks(self) -> ModelSelect[Task]:
        """What became of it: its newest tasks as listed. Replays may have made more of them."""
        return Task.of_event(self).limit(MOST_TASKS_SHOWN)


class EventErasure(Table):
    """An event whose data was erased while tasks of it were under way."""

    event_id = BigIntegerField(primary_key=True)
    tenant_id = BigIntegerField()
    again_at = DateTimeTZField()

    class Meta:
        table_name = "event_erasures"


class EventType(Table):
    """A type in the catalogue. ``schema`` and ``example`` are read as text."""

    name = TextField(primary_key=True)
    description = TextField()
    schema = TextField(null=True)
    example = TextField(null=True)
    created_at = DateTimeTZField()
    updated_at = DateTimeTZField()

    class Meta:
        table_name = "event_types"


class Cluster(Table):
    """A range of event ids that was written in one PostgreSQL cluster (schema.sql, "clusters")."""

    generation = IntegerField(primary_key=True)
    system_identifier = BigIntegerField(null=True)
    from_id = BigIntegerField()

    class Meta:
        table_name = "clusters"


class Task(Table):
    """One event to be delivered to one endpoint; the row is the queue."""

    id = BigIntegerField(primary_key=True)
    tenant_id = BigIntegerField()
    endpoint_id = BigIntegerField()
    event_id = BigIntegerField()
    status = TextField()
    ready = BooleanField()
    lane = SmallIntegerField()
    probe = BooleanField()
    next_try_at = DateTimeTZField(null=True)
    tries = IntegerField()
    step = SmallIntegerField()
    attempt_id = BigIntegerField(null=True)
    failure = TextField(null=True)
    replay_id = BigIntegerField(null=True)
    due_at = DateTimeTZField(null=True)
    rare_status = TextField(null=True)

    class Meta:
        table_name = "tasks"

    @classmethod
    def listed(cls, *conditions: Expression) -> ModelSelect[Self]:
        """Tasks as people see them, newest first, each with its URL and its event's type.

        A task whose endpoint was paused, disabled or deleted is shown in the state it is about to
        get: the endpoint's row changes first, and a job moves its tasks after it.
        """
        status, next_try_at = cls._effective()
        return (
            cls.select(
                cls.id, cls.tenant_id, cls.endpoint_id, cls.event_id, cls.tries, cls.step,
                cls.failure, cls.replay_id, cls.attempt_id, cls.ready, status.alias("status"),
                next_try_at.alias("next_try_at"), Endpoint.url.alias("url"),
                Event.type.alias("type"),
            )
            .join(Endpoint, JOIN.LEFT_OUTER, on=(Endpoint.id == cls.endpoint_id), attr="_endpoint")
            .switch(cls)
            .join(Event, JOIN.LEFT_OUTER, on=(Event.id == cls.event_id), attr="_event")
            .where(*conditions)
            .order_by(cls.id.desc())
            .objects()
        )  # fmt: skip

    @classmethod
    def get_of(cls, tenant_id: int, task_id: int) -> Self:
        """One of a tenant's tasks as ``listed``, or ``not_found``."""
        task = cls.listed(cls.tenant_id == tenant_id, cls.id == task_id).first()
        if task is None:
            raise errors.not_found(f"task task_{task_id}")
        return task

    @classmethod
    def of_event(cls, event: Event) -> ModelSelect[Self]:
        """An event's tasks as ``listed``, those of replays and of deleted endpoints too."""
        return cls.listed(cls.id.in_(cls.ids_of_event(event)))

    @classmethod
    def ids_of_event(cls, event: Event) -> set[int]:
        """The ids of an event's tasks, those of replays and of deleted endpoints too.

        Those it was made with lie right behind its id. Those of replays are known by endpoint; a
        minute of slack for a publish that read an endpoint just before its deletion committed.
        """
        made_with_it = cls.select(cls.id).where(
            cls.tenant_id == event.tenant_id,
            cls.id >= id_at(event.created_at),
            cls.id < id_at(event.created_at + MADE_WITHIN),
            cls.event_id == event.id,
        )
        made_with_it = made_with_it.order_by(cls.id).limit(event.fanout)
        endpoints = Endpoint.ids_since(event.tenant_id, event.created_at - timedelta(minutes=1))
        replayed = cls.select(cls.id).where(
            cls.replay_id.is_null(False),
            cls.event_id == event.id,
            cls.endpoint_id.in_(endpoints),
        )
        return {task_id for (task_id,) in [*made_with_it.tuples(), *replayed.tuples()]}

    @property
    def created_at(self) -> datetime:
        """When it was made, to the millisecond."""
        return id_time(self.id)

    @property
    def attempts(self) -> list[Attempt]:
        """Its latest attempts, in the order they were made."""
        return list(Attempt.of(self.id).limit(MOST_ATTEMPTS_SHOWN))[::-1]

    @property
    def retries(self) -> int:
        """Attempts begun after the first one."""
        return max(self.tries - 1, 0)

    @classmethod
    def _effective(cls) -> tuple[Case, Case]:
        """Status and next_try_at, seen together with the endpoint's status."""
        moving = cls.status.in_(("pending", "retry"))
        deleted = Endpoint.status == "deleted"
        parked = Endpoint.status.in_(("pending", "paused", "disabled"))
        status = Case(
            None,
            [
                (deleted & (moving | (cls.status == "waiting")), "canceled"),
                (parked & moving, "waiting"),
            ],
            cls.status,
        )
        next_try_at = Case(None, [((deleted | parked) & moving, None)], cls.next_try_at)
        return status, next_try_at

    @classmethod
    def count_waiting(cls, endpoint: Endpoint) -> int:
        """How many tasks wait for an endpoint, as people see them.

        Those that wait by their row, and those of one that was just stopped which have yet to
        follow. Each from an index, and no more than ``MOST_WAITING_COUNTED`` rows are looked at;
        of the tasks between two tries, so many of the tenant's.
        """
        follow = endpoint.settling and endpoint.status != "active"
        (counted,) = db.execute_sql(
            """
            SELECT count(*) FROM (
                (SELECT 1 FROM hookjetty.tasks t
                 WHERE t.rare_status = 'waiting' AND t.endpoint_id = %(endpoint)s LIMIT %(most)s)
                UNION ALL
                (SELECT 1 FROM hookjetty.tasks t
                 WHERE %(follow)s AND t.ready AND t.tenant_id = %(tenant)s
                   AND t.endpoint_id = %(endpoint)s AND t.status IN ('pending', 'retry')
                 LIMIT %(most)s)
                UNION ALL
                (SELECT 1 FROM (
                    SELECT t.endpoint_id FROM hookjetty.tasks t
                    WHERE %(follow)s AND t.rare_status = 'retry' AND NOT t.ready
                      AND t.tenant_id = %(tenant)s LIMIT %(most)s) r
                 WHERE r.endpoint_id = %(endpoint)s)
                LIMIT %(most)s) counted
            """,
            {
                "endpoint": endpoint.id,
                "tenant": endpoint.tenant_id,
                "follow": follow,
                "most": MOST_WAITING_COUNTED,
            },
        ).fetchone()
        return int(counted)


class Lease(Table):
    """The tasks that one claim of a dispatcher took, until they are recorded or it ends."""

    id = BigIntegerField(primary_key=True)
    ends_at = DateTimeTZField()
    task_ids = ArrayField(BigIntegerField, index=False)

    class Meta:
        table_name = "leases"


class Attempt(Table):
    """One HTTP request made for a task, and what came back."""

    id = BigIntegerField(primary_key=True)
    task_id = BigIntegerField()
    tenant_id = BigIntegerField()
    endpoint_id = BigIntegerField()
    # `try` is Python's word, so the attribute bears another name than the column.
    number = IntegerField(column_name="try")
    started_at = DateTimeTZField(null=True)
    status_code = SmallIntegerField(null=True)
    failure = TextField(null=True)
    resolve_us = IntegerField(null=True)
    connect_us = IntegerField(null=True)
    tls_us = IntegerField(null=True)
    first_byte_us = IntegerField(null=True)
    total_us = IntegerField(null=True)
    address = TextField(null=True)
    response_headers = TextField(null=True)
    response_body = TextField(null=True)
    truncated = BooleanField()
    resent = BooleanField()

    class Meta:
        table_name = "attempts"

    @classmethod
    def of(cls, task_id: int) -> ModelSelect[Self]:
        """A task's attempts, the latest first."""
        return cls.select().where(cls.task_id == task_id).order_by(cls.id.desc())

    @property
    def timings_ms(self) -> dict[str, float | None]:
        """Milliseconds from the start to the end of each phase; None: not reached."""
        return {
            phase: None if (us := getattr(self, f"{phase}_us")) is None else us / 1000
            for phase in ("resolve", "connect", "tls", "first_byte", "total")
        }


class Walk(Table):
    """What a replay and a bulk retry are: a tenant's request to go through a range of its past,
    which the dispatchers do a batch at a time.
    """

    # What errors call one, before its number.
    called: ClassVar[str]

    id = BigAutoField()
    tenant_id = BigIntegerField()
    status = TextField()
    from_id = BigIntegerField()
    upto_id = BigIntegerField()
    cursor_id = BigIntegerField()
    tasks = BigIntegerField()
    created_at = DateTimeTZField()
    finished_at = DateTimeTZField(null=True)

    @classmethod
    def of(cls, tenant_id: int) -> ModelSelect[Self]:
        """A tenant's, the newest first."""
        return cls.select().where(cls.tenant_id == tenant_id).order_by(cls.id.desc())

    @classmethod
    def get_of(cls, tenant_id: int, walk_id: int) -> Self:
        """One of a tenant's, or ``not_found``."""
        walk = cls.get_or_none(cls.id == walk_id, cls.tenant_id == tenant_id)
        if walk is None:
            raise errors.not_found(f"{cls.called}{walk_id}")
        return walk

    @classmethod
    def cancel_of(cls, tenant_id: int, walk_id: int) -> Self:
        """Go no further; what was done already stays so. ``version_conflict`` once finished."""
        cls.update(status="canceled", finished_at=fn.now()).where(
            cls.id == walk_id, cls.tenant_id == tenant_id, cls.status == "running"
        ).execute()
        walk = cls.get_of(tenant_id, walk_id)
        if walk.status == "finished":
            raise errors.conflict(f"{cls.called}{walk_id} has finished already")
        return walk

    @property
    def progress(self) -> float:
        """How far it has come on its way through that time, in percent."""
        if self.status == "finished":
            return 100.0
        gone, all_of_it = self.cursor_id + 1 - self.from_id, self.upto_id + 1 - self.from_id
        return round(100 * min(max(gone / max(all_of_it, 1), 0), 1), 1)


class Replay(Walk):
    """A request to deliver an endpoint's past events again."""

    called = "replay rpl_"

    endpoint_id = BigIntegerField()
    event_types = ArrayField(TextField, index=False, null=True)
    # `only` is SQL's word, so the column bears another name than the attribute.
    only = TextField(column_name="only_those", null=True)
    events = BigIntegerField()

    class Meta:
        table_name = "replays"

    @property
    def from_time(self) -> datetime:
        """The moment from which it replays."""
        return id_time(self.from_id)

    @property
    def upto_time(self) -> datetime:
        """The moment before which it ends."""
        return id_time(self.upto_id + 1)


class BulkRetry(Walk):
    """A request to try all tasks again that a filter finds."""

    called = "bulk retry blk_"

    # `filter` is a method of Peewee's models, so the attribute bears another name than the column.
    wanted = BinaryJSONField(column_name="filter", index=False)
    looked_at = BigIntegerField()

    class Meta:
        table_name = "bulk_retries"


class IdempotencyKey(Table):
    """The answer to a write, by its X-Request-Id."""

    owner = BigIntegerField()
    method = TextField()
    path = TextField()
    key = TextField()
    body_sha256 = BlobField()
    status_code = SmallIntegerField(null=True)
    answer = TextField(null=True)
    etag = TextField(null=True)
    sealed = BooleanField()
    created_at = DateTimeTZField()

    class Meta:
        table_name = "idempotency_keys"
        primary_key = False


class RateLimit(Table):
    """What the limits have counted; written by the functions count_hit and take_tokens."""

    key = TextField(primary_key=True)
    hits = ArrayField(DateTimeTZField, index=False, null=True)
    tokens = FloatField(null=True)
    counted_at = DateTimeTZField()
    wait = FloatField(null=True)

    class Meta:
        table_name = "rate_limits"


class AuditLine(Table):
    """Something a person did over the API. The id is the time."""

    id = BigIntegerField(primary_key=True)
    tenant_id = BigIntegerField(null=True)
    actor = TextField()
    role = TextField()
    action = TextField()
    object = TextField(null=True)
    address = TextField(null=True)
    request_id = TextField()
    status_code = SmallIntegerField()

    class Meta:
        table_name = "audit"

    @property
    def created_at(self) -> datetime:
        """When it was done, to the millisecond."""
        return id_time(self.id)


class TenantErasure(Table):
    """A request to delete all that is known of a tenant, and the report of it."""

    id = BigAutoField()
    tenant_id = BigIntegerField()
    status = TextField()
    upto_id = BigIntegerField()
    upto_endpoint_id = BigIntegerField()
    round = IntegerField()
    part = SmallIntegerField()
    cursor_id = BigIntegerField()
    found = BinaryJSONField(index=False)
    deleted = BinaryJSONField(index=False)
    horizon = BigIntegerField(null=True)
    created_at = DateTimeTZField()
    finished_at = DateTimeTZField(null=True)

    class Meta:
        table_name = "tenant_erasures"

    @property
    def left(self) -> dict[str, int] | None:
        """Rows that the last round still found, by table: none. None while it is running."""
        return self.found if self.status == "finished" else None


class Dispatcher(Table):
    """A running dispatcher's heartbeat."""

    id = BigIntegerField(primary_key=True)
    host = TextField()
    pid = IntegerField()
    parked = BooleanField()
    in_flight = IntegerField()
    started_at = DateTimeTZField()
    seen_at = DateTimeTZField()

    class Meta:
        table_name = "dispatchers"

    @classmethod
    def alive(cls) -> ModelSelect[Self]:
        """Those whose heartbeat came within 30 seconds, as schema.sql's wake() has it."""
        return cls.select().where(cls.seen_at > fn.now() - SQL("interval '30 s'"))


def keys_of(event_ids: Sequence[int]) -> dict[int, str]:
    """The keys that events were published with, by the event's id; of those that had one."""
    rows = db.execute_sql(
        "SELECT event_id, key FROM hookjetty.event_keys WHERE event_id = ANY (%s)",
        (list(event_ids),),
    )
    return dict(rows.fetchall())


def wake() -> None:
    """Bring the dispatchers' jobs and claims forward when the present transaction commits."""
    db.execute_sql("SELECT pg_notify('hookjetty', 'jobs')")


def id_time(identifier: int) -> datetime:
    """The moment an event, task or attempt id was made (schema.sql, "ids").

    >>> id_time(0).isoformat()
    '2025-01-01T00:00:00+00:00'
    """
    return datetime.fromtimestamp(((identifier >> 12) + ID_EPOCH_MS) / 1000, UTC)


def id_at(moment: datetime) -> int:
    """The smallest id of that moment: the lower bound of "since".

    >>> id_at(datetime(2025, 1, 1, 0, 0, 1, tzinfo=UTC)) == 1000 << 12
    True
    """
    return (int(moment.timestamp() * 1000) - ID_EPOCH_MS) << 12


# RFC 3339, section 5.6. A leap second is its minute's end, which no clock of ours can name.
_TIME = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt]((?:[01]\d|2[0-3]):\d\d):(\d\d)(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)


def read_time(text: str) -> datetime | None:
    """A moment in RFC 3339; None if it is none.

    >>> read_time("2016-12-31T23:59:60.5Z").isoformat()
    '2016-12-31T23:59:59.500000+00:00'
    """
    found = _TIME.fullmatch(text)
    if found is None:
        return None
    day, minute, second, fraction, offset = found.groups()
    second = "59" if second == "60" else second
    fraction = (fraction or "")[:7]  # microseconds
    try:
        return datetime.fromisoformat(f"{day}T{minute}:{second}{fraction}{offset.upper()}")
    except ValueError:
        return None


def rfc3339(moment: datetime | None) -> str | None:
    """UTC with milliseconds, the one form of times on every surface.

    >>> rfc3339(datetime(2025, 10, 5, 6, 0, tzinfo=UTC))
    '2025-10-05T06:00:00.000Z'
    """
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def tables() -> Sequence[type[Table]]:
    """Every model, for the test that holds them against schema.sql."""
    return [each for each in (*Table.__subclasses__(), *Walk.__subclasses__()) if each is not Walk]
