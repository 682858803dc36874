"""Tasks as people work with them: found, looked at, explained, tried again, canceled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, NamedTuple, Self

from peewee import Case, fn

from app import deliveries, errors, explain
from app.db import clock, db
from app.models import (
    LARGEST_ID,
    Attempt,
    Endpoint,
    Event,
    Task,
    id_at,
    rfc3339,
    wake,
)
from app.pages import Page, cursor_behind, last_id_in

# One request looks at no more tasks than this, however few of them are wanted.
MOST_LOOKED_AT = 10_000

# Of endpoints that are deleted and had no task of an event, so many are named: there is no end to
# registering and deleting.
MOST_DELETED_NAMED = 100

# The receiver's answer to the latest try, by its hundreds, as the task itself tells it.
CODE_CLASSES: Mapping[str, str] = {
    "2xx": "t.status = 'delivered'",
    "3xx": "t.failure = 'redirect'",
    "4xx": "t.failure = 'http_4xx'",
    "5xx": "t.failure = 'http_5xx'",
}

# These have an index of their own: a list of them looks at nothing else.
_RARE = ("failed", "canceled", "waiting", "retry")


# ------------------------------------------------------------------------------------------ find


@dataclass(frozen=True)
class TaskFilter:
    """Which of a tenant's tasks: those of which all that is given is true.

    ``type`` is an event type, or all below a prefix (``export.*``). ``since`` is included and
    ``until`` is not; both are times at which tasks were made. ``failed_since``: their latest try
    began then or later.
    """

    status: str | None = None
    endpoint_id: int | None = None
    event_id: int | None = None
    type: str | None = None
    code_class: str | None = None
    failure: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    failed_since: datetime | None = None

    @classmethod
    def stored(cls, values: Mapping[str, Any]) -> Self:
        """A filter as ``storable`` made it."""
        times = ("since", "until", "failed_since")
        read: dict[str, Any] = {
            name: datetime.fromisoformat(value) if name in times else value
            for name, value in values.items()
        }
        return cls(**read)

    def storable(self) -> dict[str, Any]:
        """What is given, as JSON.

        >>> TaskFilter(status="failed", endpoint_id=7).storable()
        {'status': 'failed', 'endpoint_id': 7}
        """
        return {
            name: rfc3339(value) if isinstance(value, datetime) else value
            for name, value in asdict(self).items()
            if value is not None
        }

    @property
    def lowest_id(self) -> int:
        """No task that is wanted has a smaller id. A task is not made before its event."""
        since = id_at(self.since) if self.since else 0
        return max(since, (self.event_id or 0) >> 12 << 12, 0)

    @property
    def highest_id(self) -> int:
        """No task that is wanted has a larger id."""
        return min(id_at(self.until) - 1, LARGEST_ID) if self.until else LARGEST_ID

    def conditions(self) -> tuple[list[str], dict[str, Any]]:
        """All but the status and the times, as SQL about a task ``t``, and its parameters.

        The event's type is asked for task by task (OFFSET 0 has it stay so): how many are looked at
        is bounded, and a join with all events would not be.
        """
        found, parameters = [], dict[str, Any]()
        for name in ("endpoint_id", "event_id", "failure"):
            value = getattr(self, name)
            if value is not None:
                found.append(f"t.{name} = %({name})s")
                parameters[name] = value
        if self.code_class is not None:
            found.append(CODE_CLASSES[self.code_class])
        if self.failed_since is not None:
            found.append("t.attempt_id >= %(failed_since)s")
            parameters["failed_since"] = id_at(self.failed_since)
        if self.type is not None:
            is_of_type, of_type = Event.type_condition(self.type)
            found.append(
                "EXISTS (SELECT FROM hookjetty.events e"
                f" WHERE e.id = t.event_id AND {is_of_type} OFFSET 0)"
            )
            parameters |= of_type
        return found, parameters


def page_of_tasks(tenant_id: int, *, limit: int, cursor: str | None = None, **wanted: Any) -> Page:
    """A tenant's tasks, the newest first; ``wanted`` are the fields of a ``TaskFilter``.

    One request looks at no more than ``MOST_LOOKED_AT`` tasks. Where few of them are wanted,
    a page may have fewer items than ``limit``, or none, and yet not be the last one.
    """
    narrowed = TaskFilter(**wanted)
    of = ("tasks", tenant_id, *narrowed.storable().items())
    below = {} if cursor is None else {"below": last_id_in(cursor, of)}
    found = find(tenant_id, narrowed, limit=limit, **below)
    items = list(Task.listed(Task.id.in_(found.ids))) if found.ids else []
    more = found.more_below
    return Page(items, None if more is None else cursor_behind(more, of))


class Found(NamedTuple):
    """The newest tasks that are wanted, and below which id to look for more; None: there are none.

    They may be fewer than asked for, and even none, when more than ``MOST_LOOKED_AT`` had to be
    looked at.
    """

    ids: list[int]
    more_below: int | None


def find(tenant_id: int, wanted: TaskFilter, *, limit: int, below: int = LARGEST_ID + 1) -> Found:
    """At most ``limit`` of a tenant's tasks that are wanted, newest first, with ids ``below`` that.

    What is looked at comes in the order of one index, the one that knows most about what is wanted,
    and ends after ``MOST_LOOKED_AT``; whether a task is wanted is asked of each. Rarely it takes
    several indexes: then what each of them has is looked at as far as they all reach.
    """
    conditions, parameters = wanted.conditions()
    status, of_status = _shown_status(tenant_id, wanted.status)
    parameters |= of_status | {
        "tenant": tenant_id,
        "lowest": wanted.lowest_id,
        "highest": min(below - 1, wanted.highest_id),
    }
    sources = _sources(tenant_id, wanted, parameters)
    most = max(1, MOST_LOOKED_AT // len(sources))
    reached = _reached(sources, most, parameters) if len(sources) > 1 else None
    if reached is not None:
        parameters["lowest"] = reached
    looked_at = " UNION ALL ".join(f"({each.newest(most)})" for each in sources)
    order = sources[0].order if len(sources) == 1 else "t.id DESC"
    rows = db.execute_sql(
        f"""
        SELECT t.id FROM ({looked_at}) t
        WHERE {" AND ".join(["t.tenant_id = %(tenant)s", *status, *conditions])}
        ORDER BY {order} LIMIT {limit + 1}
        """,
        parameters,
    ).fetchall()
    ids = [task_id for (task_id,) in rows]
    if len(ids) > limit:
        return Found(ids[:limit], ids[limit - 1])
    return Found(ids, _reached(sources, most, parameters) if len(sources) == 1 else reached)


class _Source(NamedTuple):
    """Where to look for tasks: the index whose first columns have these values, or a condition.

    The index is named by a comparison of rows and by an order that no other index has. With mere
    equations and an order by id, the planner may go through the ids of everybody's tasks instead,
    which is a good idea only if those that are wanted are spread evenly.
    """

    columns: tuple[tuple[str, object], ...] = ()
    condition: str = "true"

    def newest(self, most: int) -> str:
        """So many of its tasks as SQL, newest first."""
        names = "".join(f"t.{name}, " for name, _ in self.columns)
        values = "".join(f"{value}, " for _, value in self.columns)
        return (
            "SELECT t.id, t.tenant_id, t.endpoint_id, t.event_id, t.status, t.rare_status,"
            " t.failure, t.attempt_id"
            f" FROM hookjetty.tasks t WHERE {self.condition}"
            f" AND ({names}t.id) BETWEEN ({values}%(lowest)s) AND ({values}%(highest)s)"
            f" ORDER BY {self.order} LIMIT {most}"
        )

    @property
    def order(self) -> str:
        """Its order, as a task ``t`` has it."""
        return ", ".join(f"t.{name} DESC" for name in (*dict(self.columns), "id"))


def _reached(sources: Sequence[_Source], most: int, parameters: Mapping[str, Any]) -> int | None:
    """The smallest id down to which ``most`` tasks of each source reach; None: to their end."""
    each = " UNION ALL ".join(
        f"SELECT count(*) AS number, min(t.id) AS lowest FROM ({source.newest(most)}) t"
        for source in sources
    )
    row = db.execute_sql(
        f"SELECT max(s.lowest) FROM ({each}) s WHERE s.number = {most}", parameters
    ).fetchone()
    lowest: int | None = row[0]
    return lowest


def _sources(tenant_id: int, wanted: TaskFilter, parameters: dict[str, Any]) -> list[_Source]:
    """Where to look, no task being in two of them; parameters are added."""
    status = wanted.status
    if wanted.endpoint_id is not None:
        its = Endpoint.select().where(
            Endpoint.id == wanted.endpoint_id, Endpoint.tenant_id == tenant_id
        )
        if not its.exists():
            # The cursor would tell how far a look at another tenant's tasks reaches.
            return [_Source(condition="false")]
    if wanted.event_id is not None:
        event = Event.get_or_none(Event.id == wanted.event_id, Event.tenant_id == tenant_id)
        parameters["ids"] = sorted(Task.ids_of_event(event)) if event else []
        return [_Source(condition="t.id = ANY (%(ids)s::bigint[])")]
    has_failed = wanted.failure is not None or wanted.code_class in ("3xx", "4xx", "5xx")
    if status == "delivering" or (status is None and has_failed):
        parameters["ids"] = _under_way(tenant_id)
        under_way = _Source(
            condition="t.id = ANY (%(ids)s::bigint[]) AND t.status = 'delivering'"
            " AND t.tenant_id = %(tenant)s"
        )
        # A task that was tried, and is not delivered, is under way or one of these.
        return [under_way, *(_rare(each) for each in _RARE if status is None)]
    if status in _RARE:
        # And of the endpoints that these have yet to follow.
        moving = {"waiting": "unsettled", "canceled": "gone"}.get(status)
        return [
            _rare(status),
            *(
                _Source((("endpoint_id", each),), f"t.rare_status IS DISTINCT FROM '{status}'")
                for each in (parameters[moving] if moving else ())
            ),
        ]
    if wanted.endpoint_id is not None:
        return [_Source((("endpoint_id", "%(endpoint_id)s"),))]
    if status == "pending":
        # True of them all, and lets the indexes answer that hold nothing else.
        open_ones = "t.ready OR (t.due_at IS NOT NULL AND NOT t.ready)"
        pending = f"t.tenant_id = %(tenant)s AND t.status = 'pending' AND ({open_ones})"
        return [_Source(condition=pending)]
    return [_Source((("tenant_id", "%(tenant)s"),))]


def _rare(status: str) -> _Source:
    columns = (("tenant_id", "%(tenant)s"), ("rare_status", f"'{status}'"))
    return _Source(columns, "t.rare_status IS NOT NULL")


def _under_way(tenant_id: int) -> list[int]:
    """Tasks that may be under way, of all tenants: some thousand at most.

    They are in a lease; or were, and the lease has ended with its dispatcher, and they are about to
    be claimed again. The latter are looked for among the first that are ready.
    """
    rows = db.execute_sql(
        f"""
        SELECT unnest(task_ids) FROM hookjetty.leases
        UNION
        SELECT t.id FROM (SELECT t.id, t.status FROM hookjetty.tasks t
                          WHERE t.ready AND t.tenant_id = %s LIMIT {MOST_LOOKED_AT}) t
        WHERE t.status = 'delivering'
        """,
        (tenant_id,),
    ).fetchall()
    return [task_id for (task_id,) in rows]


def _shown_status(tenant_id: int, status: str | None) -> tuple[list[str], dict[str, Any]]:
    """The condition that a task has that status as people see it (``Task.listed``).

    Said by the stored status, which the indexes know, and by the endpoints whose tasks have yet to
    follow them.
    """
    if status is None:
        return [], {}
    parked, unsettled, gone = Endpoint.inactive_ids(tenant_id)
    parameters = {"status": status, "parked": parked, "unsettled": unsettled, "gone": gone}
    stays = "t.endpoint_id <> ALL (%(gone)s::bigint[])"
    has_it = "t.status = %(status)s"
    if status in ("pending", "retry"):
        return [has_it, stays, "t.endpoint_id <> ALL (%(parked)s::bigint[])"], parameters
    if status == "waiting":
        moving = "t.status IN ('pending', 'retry') AND t.endpoint_id = ANY (%(parked)s::bigint[])"
        return [f"({has_it} OR ({moving}))", stays], parameters
    if status == "canceled":
        moving = "t.status IN ('pending', 'retry', 'waiting')"
        return [f"({has_it} OR ({moving} AND NOT {stays}))"], parameters
    return [has_it], parameters


# --------------------------------------------------------------------------------------- look at


class Request(NamedTuple):
    """The latest attempt's request, built again."""

    method: str
    url: str
    headers: dict[str, str]
    body: str


@dataclass(frozen=True)
class ShownAttempt:
    """An attempt with the headers that were sent; None where nobody knows when it was sent."""

    attempt: Attempt
    request_headers: dict[str, str] | None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attempt, name)


@dataclass(frozen=True)
class ShownTask:
    """A task with all there is to know about it."""

    task: Task
    why: str
    request: Request | None
    attempts: list[ShownAttempt]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)


def look_at(tenant_id: int, task_id: int) -> ShownTask:
    """One of a tenant's tasks, or ``not_found``.

    Requests are not stored but built again. The body is the very one that was sent; the URL is the
    one that the endpoint has now. There is none before the first attempt, and once the event is
    past its retention or its data was erased.
    """
    task = Task.get_of(tenant_id, task_id)
    endpoint = Endpoint.get_or_none(Endpoint.id == task.endpoint_id)
    event = Event.select_text().where(Event.id == task.event_id).first()
    attempts = [ShownAttempt(each, _headers(task, each)) for each in task.attempts]
    last = attempts[-1] if attempts else None
    request = None
    data = event.data if event is not None else None
    if data is not None and endpoint is not None and last and last.request_headers:
        body = deliveries.event_body(event.id, event.type, data).decode()
        request = Request(deliveries.METHOD, endpoint.url_key, last.request_headers, body)
    latest = last.attempt if last else None
    why = explain.why_task(task, endpoint, event, latest, clock())
    return ShownTask(task, why, request, attempts)


def _headers(task: Task, attempt: Attempt) -> dict[str, str] | None:
    if attempt.started_at is None:
        return None
    return deliveries.shown_headers(
        task.event_id, attempt.number, task.replay_id, attempt.started_at
    )


class TaskReason(NamedTuple):
    """A task, and why it is where it is."""

    task: Task
    why: str

    @property
    def id(self) -> int:
        """The task's."""
        return self.task.id


class EndpointReason(NamedTuple):
    """An endpoint, and what became of an event there, or why nothing did."""

    endpoint: Endpoint
    why: str
    tasks: list[TaskReason]


def why_of_event(event: Event) -> list[EndpointReason]:
    """What became of an event at every endpoint that the tenant had since, oldest endpoint first.

    Of those that were deleted since and have no task of it, the latest ``MOST_DELETED_NAMED``.
    What decides comes first: a task that was delivered, else the newest.
    """
    now = clock()
    tasks = list(event.tasks)
    last = {
        attempt.id: attempt
        for attempt in Attempt.select().where(
            Attempt.id.in_([task.attempt_id for task in tasks if task.attempt_id])
        )
    }
    ids = {*Endpoint.ids_since(event.tenant_id, event.created_at, MOST_DELETED_NAMED)}
    ids |= {task.endpoint_id for task in tasks}
    reasons = []
    for endpoint in Endpoint.select().where(Endpoint.id.in_(ids)).order_by(Endpoint.id):
        mine = [
            TaskReason(
                task, explain.why_task(task, endpoint, event, last.get(task.attempt_id or 0), now)
            )
            for task in tasks
            if task.endpoint_id == endpoint.id
        ]
        mine.sort(key=lambda each: each.task.status != "delivered")
        why = mine[0].why if mine else explain.why_none_was_made(endpoint, event)
        reasons.append(EndpointReason(endpoint, why, mine))
    return reasons


# ------------------------------------------------------------------------------------------ verbs


def retry(task_id: int) -> str:
    """A person's retry: due now, from the schedule's first step, and past a hold.

    Returns a sentence on what happens next, or "ok". The task of an endpoint that is not active
    waits for it; while under way, or for a deleted endpoint, an expired event or one whose data was
    erased, there is nothing to retry: ``version_conflict``.
    """
    with db.atomic():
        task = Task.select().where(Task.id == task_id).for_update().first()
        if task is None:
            raise errors.not_found(f"task {task_id}")
        endpoint = Endpoint.get_or_none(Endpoint.id == task.endpoint_id)
        if endpoint is None or endpoint.status == "deleted":
            raise errors.conflict(f"the endpoint of task {task_id} is deleted")
        if task.status == "delivering":
            raise errors.conflict(f"task {task_id} is being delivered right now")
        event = Event.select(Event.data.is_null()).where(Event.id == task.event_id)
        is_erased = event.scalar()
        if is_erased is None:
            raise errors.conflict(f"the event of task {task_id} is past its retention")
        if is_erased:
            raise errors.conflict(f"the data of the event of task {task_id} was erased")
        active = endpoint.status == "active"
        Task.update(
            status="retry" if active else "waiting",
            ready=active,
            next_try_at=fn.now() if active else None,
            step=0,
            probe=True,
            # Whoever retries one task is waiting for it, whatever was done with it in bulk before.
            lane=Case(None, [(Task.replay_id.is_null(), 0)], Task.lane),
        ).where(Task.id == task_id).execute()
        wake()
    if active:
        return "ok"
    return f"waiting: the endpoint is {endpoint.status}; it is sent when that changes"


def cancel(tenant_id: int, task_id: int) -> None:
    """Let a tenant's open task not be tried again; one that is canceled stays so.

    ``version_conflict`` while it is being delivered, and once it is done.
    """
    with db.atomic():
        # A claim that has the row is waited for, and one that comes after finds it canceled.
        query = Task.select().where(Task.id == task_id, Task.tenant_id == tenant_id)
        task = query.for_update().first()
        if task is None:
            raise errors.not_found(f"task task_{task_id}")
        if task.status == "delivering":
            raise errors.conflict(f"task task_{task_id} is being delivered right now")
        if task.status in ("delivered", "failed"):
            raise errors.conflict(f"task task_{task_id} is done: it is {task.status}")
        if task.status != "canceled":
            Task.update(status="canceled", ready=False, next_try_at=None, probe=False).where(
                Task.id == task_id
            ).execute()
