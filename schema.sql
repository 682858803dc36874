-- Hookjetty's state, and the specification of it.
--
-- Everything lives in the schema "hookjetty", so a service can share its database with us. The file
-- describes a fresh database and may be applied again to one of the same version; `hookjetty db
-- migrate` applies it under an advisory lock, and application and dispatcher refuse to start on a
-- database of another version.
--
-- Reading order: ids, tenants and endpoints, events, clusters, tasks (the queue), attempts, replays,
-- bulk retries, what the API and the dispatchers keep for themselves, people's actions and erasures,
-- partitions, publish_event(), operational events.
--
-- Three rules hold everywhere:
--   * All times are this database's. now() is the transaction's start, clock_timestamp() the moment.
--   * No foreign keys onto or from events, tasks and attempts: their partitions are dropped whole.
--   * Every statement that locks several rows of a table locks them in id order.

CREATE SCHEMA IF NOT EXISTS hookjetty;

CREATE TABLE IF NOT EXISTS hookjetty.schema_version (
    version     integer PRIMARY KEY,
    applied_at  timestamptz NOT NULL DEFAULT now()
);
INSERT INTO hookjetty.schema_version (version)
SELECT 2 WHERE NOT EXISTS (SELECT FROM hookjetty.schema_version);

-- Which keys have ever encrypted something here. A process whose SECRET_KEYS lack one of them would
-- be unable to sign for some endpoint, so it refuses to start instead.
CREATE TABLE IF NOT EXISTS hookjetty.secret_keys (
    fingerprint  text PRIMARY KEY,
    first_used   timestamptz NOT NULL DEFAULT now()
);


-- ------------------------------------------------------------------------------------------- ids
--
-- An id of an event, task or attempt is the milliseconds since 2025-01-01 UTC, shifted left by 12,
-- plus the low 12 bits of a sequence. So ids sort by time, a keyset page and "everything since this
-- watermark" are ranges of the primary key, partitions can be ranges of the id alone, and no row
-- needs a created_at. They stay below 2^53 (exact in every JSON parser) until 2094.
--
-- Clock and sequence are read in one expression and the sequence does not cache: with CACHE 100,
-- 1,865 of 1.2 million ids of three bulk sessions collided, with CACHE 1 eight. The rest is handled
-- where rows are inserted: ON CONFLICT (id) DO NOTHING and a row count, then another id. Never an
-- EXCEPTION block, which would cost a subtransaction per publish.

CREATE SEQUENCE IF NOT EXISTS hookjetty.ids CACHE 1;

CREATE OR REPLACE FUNCTION hookjetty.new_id() RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE AS $$
    SELECT (floor(date_part('epoch', clock_timestamp()) * 1000)::bigint - 1735689600000) << 12
           | (nextval('hookjetty.ids') & 4095)
$$;

-- The smallest id that a row of that moment can have: the lower bound of "since".
CREATE OR REPLACE FUNCTION hookjetty.id_at(moment timestamptz) RETURNS bigint
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT (floor(date_part('epoch', moment) * 1000)::bigint - 1735689600000) << 12
$$;

-- The moment an id was made, to the millisecond.
CREATE OR REPLACE FUNCTION hookjetty.id_time(id bigint) RETURNS timestamptz
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT to_timestamp(((id >> 12) + 1735689600000) / 1000.0)
$$;


-- --------------------------------------------------------------------------- tenants and endpoints

-- A row is made when a tenant's first endpoint is registered or a limit is set, never by a publish
-- (an upsert there would make one long transaction of a caller block all others). It is also the
-- lock under which a tenant's endpoints are counted. Tenant 0 is the operator: nobody has a token of
-- it and nobody can publish for it; its endpoints hear of every tenant's operational events.
CREATE TABLE IF NOT EXISTS hookjetty.tenants (
    id          bigint PRIMARY KEY CHECK (id BETWEEN 0 AND 9007199254740991),
    created_at  timestamptz NOT NULL DEFAULT now(),

    -- The tenant's own limits; null: as for everybody (the settings, and app/ratelimit.py).
    requests_per_second       integer CHECK (requests_per_second BETWEEN 1 AND 100000),
    registrations_per_minute  integer CHECK (registrations_per_minute BETWEEN 1 AND 100000),
    replays_per_minute        integer CHECK (replays_per_minute BETWEEN 1 AND 100000),
    events_per_second         integer CHECK (events_per_second BETWEEN 1 AND 1000000),
    endpoints                 integer CHECK (endpoints BETWEEN 1 AND 1000)
);

-- Endpoint states, and what moves between them:
--
--   (new, by a tenant) ──► pending ── handshake answered ──► active ◄── (new, by an admin)
--                             ▲                               │  ▲
--                             │ URL changed                   │  │ registered again: by handshake
--                             └──────── active, disabled      ▼  │
--                                             paused       disabled  (us, with a reason: 'gone', it
--                                                          answered 410; 'failing', for five days)
--   every state ── delete ──► deleted   (kept while its tasks can still be listed)
--
-- A change of state touches this row alone and answers at once; a job then moves the endpoint's
-- open tasks in batches ("settling"). Until it has, lists show a task's effective status by joining
-- its endpoint, and a claim that meets such a task moves it.
--
-- An active endpoint is on hold exactly while hold_until is set, whether or not that time has
-- passed: its tasks wait, as those of a paused one do, and only a probe is sent. dispatcher/health.py
-- has the rules, docs/decisions/0007-holds.md the reasons:
--
--   well ── 5 failures in a row, or Retry-After ──► on hold ◄─────────── the probe failed ──┐
--     ▲                                              │   └── time is over ──► probe sent ───┤
--     ├── time is over, and fewer than 5 failures ───┘                                      │
--     └── ramp ◄──────────────────────────────────────────────────── anything succeeded ────┘
CREATE TABLE IF NOT EXISTS hookjetty.endpoints (
    id                 bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    tenant_id          bigint NOT NULL REFERENCES hookjetty.tenants (id),
    -- What the tenant wrote, and the canonical form that makes it unique and is called.
    url                text NOT NULL,
    url_key            text NOT NULL CHECK (octet_length(url_key) <= 2048),
    -- Wanted event types: exact, 'export.*' or '*'.
    events             text[] NOT NULL CHECK (cardinality(events) BETWEEN 1 AND 100),
    -- What the tenant wants to remember about it. Nothing here reads them.
    description        text CHECK (length(description) BETWEEN 1 AND 500),
    metadata           jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    status             text NOT NULL
                       CHECK (status IN ('pending', 'active', 'paused', 'disabled', 'deleted')),
    -- Why we disabled it, in one word.
    reason             text CHECK (reason IN ('gone', 'failing')),
    -- Encrypted (never in clear), and those replaced but still signed with: [{"secret", "until"}].
    secret             text NOT NULL,
    retired_secrets    jsonb NOT NULL DEFAULT '[]',
    -- Counts the changes people make: the API's ETag. A challenge's answer holds for the version it
    -- was sent to.
    version            bigint NOT NULL DEFAULT 1,
    created_at         timestamptz NOT NULL DEFAULT now(),
    updated_at         timestamptz NOT NULL DEFAULT now(),

    -- The handshake: when the next challenge is due (also the lease of the one under way); null when
    -- none is planned. How many were sent since the last change, and how the last one failed.
    handshake_at       timestamptz,
    handshake_tries    integer NOT NULL DEFAULT 0,
    handshake_failure  text,
    verified_at        timestamptz,
    -- Somebody asked whether the receiver looks at signatures: once it has answered a challenge well,
    -- it gets another one with a wrong signature. What came of that; null: nobody knows.
    checks_signatures    boolean NOT NULL DEFAULT false,
    verifies_signatures  boolean,

    -- Health. Written only when it changes, so a healthy endpoint's row stays untouched.
    failures           integer NOT NULL DEFAULT 0 CHECK (failures >= 0),    -- in a row
    failing_since      timestamptz,         -- the first of them
    hold_until         timestamptz,         -- while set: on hold. Then a probe is due, or the end
    recovered_at       timestamptz,         -- the start of the latest ramp

    -- What differs here from the settings; null: they apply. Slots are per dispatcher process, the
    -- schedule is the delay in seconds before each try.
    slots              smallint CHECK (slots BETWEEN 1 AND 1000),
    timeout_seconds    real CHECK (timeout_seconds > 0 AND timeout_seconds <= 30),
    retry_schedule     real[] CHECK (array_ndims(retry_schedule) = 1
                                     AND cardinality(retry_schedule) BETWEEN 1 AND 32
                                     AND array_position(retry_schedule, NULL) IS NULL
                                     AND 0 <= ALL (retry_schedule)
                                     AND 2592000 >= ALL (retry_schedule)),

    -- Some of its open tasks do not fit its status or the end of its hold yet; a job is to move
    -- them.
    settling           boolean NOT NULL DEFAULT false,

    CONSTRAINT disabled_has_reason CHECK ((status = 'disabled') = (reason IS NOT NULL)),
    CONSTRAINT failures_have_a_beginning CHECK ((failures > 0) = (failing_since IS NOT NULL)),
    CONSTRAINT only_who_is_asked_has_handshake CHECK (
        handshake_at IS NULL OR status = 'pending' OR (status = 'active' AND checks_signatures))
) WITH (fillfactor = 80);

-- One live endpoint per tenant and canonical URL; register's lookup.
CREATE UNIQUE INDEX IF NOT EXISTS endpoints_by_url
    ON hookjetty.endpoints (tenant_id, url_key) WHERE status <> 'deleted';
-- publish_event's fan-out, and both surfaces' lists.
CREATE INDEX IF NOT EXISTS endpoints_by_tenant
    ON hookjetty.endpoints (tenant_id, id) WHERE status <> 'deleted';
-- An event's tasks are found by its tenant's endpoints, those deleted since included.
CREATE INDEX IF NOT EXISTS endpoints_deleted
    ON hookjetty.endpoints (tenant_id, updated_at) WHERE status = 'deleted';
-- The handshake job: which challenges are due.
CREATE INDEX IF NOT EXISTS endpoints_handshake
    ON hookjetty.endpoints (handshake_at) WHERE handshake_at IS NOT NULL;
-- The settling job, the one that has waited longest first.
CREATE INDEX IF NOT EXISTS endpoints_settling ON hookjetty.endpoints (updated_at) WHERE settling;
-- The holds that have run out, and the next one that will.
CREATE INDEX IF NOT EXISTS endpoints_on_hold
    ON hookjetty.endpoints (hold_until) WHERE hold_until IS NOT NULL;

-- How many of its slots an endpoint may use at that moment: after a recovery one, doubling every
-- two seconds. Computed by whoever claims, so a ramp writes nothing. The twin of ramped() in
-- dispatcher/health.py; so plain that the planner inlines it.
CREATE OR REPLACE FUNCTION hookjetty.ramped(
    slots integer, recovered_at timestamptz, moment timestamptz)
RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN recovered_at IS NULL OR moment - recovered_at > interval '20 s' THEN slots
                ELSE least(slots, 1 << greatest(0, floor(
                    extract(epoch FROM moment - recovered_at) / 2)::integer)) END
$$;


-- ---------------------------------------------------------------------------------------- events

-- Something that happened. Immutable, but that a person may erase its data. `data` is the JSON text
-- as it came in, byte for byte; the event's time is its id's. `xid` is the publishing transaction,
-- since ids are not commit order.
CREATE TABLE IF NOT EXISTS hookjetty.events (
    id           bigint NOT NULL,
    tenant_id    bigint NOT NULL,
    type         text NOT NULL,
    data         json,                      -- null: erased
    fanout       integer NOT NULL,          -- tasks made with it, so that the books can be balanced
    xid          xid8 NOT NULL DEFAULT pg_current_xact_id(),
    endpoint_id  bigint,                    -- a test event, made for that endpoint alone
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

-- The list of a tenant's events, and a replay's walk over them from a watermark.
CREATE INDEX IF NOT EXISTS events_by_tenant ON hookjetty.events (tenant_id, id);
-- The feed of a tenant's events in the order of their commits.
CREATE INDEX IF NOT EXISTS events_in_feed ON hookjetty.events (tenant_id, xid, id);

-- A producer's idempotency keys. Not partitioned: a key must be unique over all weeks. Kept as long
-- as its event.
CREATE TABLE IF NOT EXISTS hookjetty.event_keys (
    tenant_id  bigint NOT NULL,
    key        text NOT NULL,
    event_id   bigint NOT NULL,
    PRIMARY KEY (tenant_id, key)
);
-- Retention: the keys of a dropped week; the list of events: the keys of a page.
CREATE INDEX IF NOT EXISTS event_keys_by_event ON hookjetty.event_keys (event_id);

-- Events whose data was erased while some of their tasks were under way: what is recorded of those
-- attempts is erased as well, once their leases have ended.
CREATE TABLE IF NOT EXISTS hookjetty.event_erasures (
    event_id   bigint PRIMARY KEY,
    tenant_id  bigint NOT NULL,
    again_at   timestamptz NOT NULL
);

-- What the platform's types of events mean: a catalogue for people, by which nothing is refused. The
-- schema is JSON Schema 2020-12, and the example satisfies it.
CREATE TABLE IF NOT EXISTS hookjetty.event_types (
    name         text PRIMARY KEY COLLATE "C",
    description  text NOT NULL DEFAULT '',
    schema       json,
    example      json,
    created_at   timestamptz NOT NULL DEFAULT now(),
    updated_at   timestamptz NOT NULL DEFAULT now()
);


-- -------------------------------------------------------------------------------------- clusters

-- Transaction ids mean something in one cluster only: after a dump was restored into another one,
-- the stored ones are of the past, and new ones may be smaller. So the feed goes by generations,
-- each of which is a range of event ids, from `from_id` to the next generation's, written in one
-- cluster.
CREATE TABLE IF NOT EXISTS hookjetty.clusters (
    generation         integer PRIMARY KEY,
    system_identifier  bigint,              -- null: was not noted yet
    from_id            bigint NOT NULL
);
INSERT INTO hookjetty.clusters (generation, from_id)
SELECT 1, 0 WHERE NOT EXISTS (SELECT FROM hookjetty.clusters);

-- Begin a generation if this is another cluster than that of the newest one. Called by every process
-- at its start and before the feed is read.
--
-- The generation begins behind the newest event that was restored. The system column xmin of an
-- event that was written here is its xid; or a later one, if it was published within a savepoint,
-- and then no other transaction's event has that xmin. What was restored has the xmin of the restore,
-- and that has many an xid. (Erasing an event's data changes its xmin, so those tell nothing.)
--
-- pg_upgrade keeps both: then nothing was restored, and the generation goes on in the new cluster.
CREATE OR REPLACE FUNCTION hookjetty.note_cluster() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    here          bigint := (SELECT system_identifier FROM pg_control_system());
    newest        hookjetty.clusters;
    event         record;
    suspect       bigint;       -- the newest event with this one's xmin …
    written_by    xid;          -- … which is this …
    published_by  xid;          -- … and its xid
    restored      bigint;
    is_empty      boolean := true;
BEGIN
    SELECT * INTO newest FROM hookjetty.clusters c ORDER BY c.generation DESC LIMIT 1;
    IF newest.system_identifier = here THEN
        RETURN;
    END IF;
    PERFORM pg_advisory_xact_lock(hashtext('hookjetty.note_cluster'));
    SELECT * INTO newest FROM hookjetty.clusters c ORDER BY c.generation DESC LIMIT 1;
    IF newest.system_identifier = here THEN
        RETURN;
    END IF;
    FOR event IN
        SELECT e.id, e.xmin, e.xid::xid,
               (e.xmin::text::bigint - e.xid::xid::text::bigint) & 4294967295 AS distance
        FROM hookjetty.events e
        WHERE e.id >= newest.from_id AND e.data IS NOT NULL ORDER BY e.id DESC
    LOOP
        is_empty := false;
        CONTINUE WHEN event.distance = 0;
        IF written_by IS NULL OR written_by <> event.xmin THEN
            suspect := event.id;
            written_by := event.xmin;
            published_by := event.xid;
        END IF;
        IF event.distance >= 2147483648 OR published_by <> event.xid THEN
            restored := suspect;
            EXIT;
        END IF;
    END LOOP;
    IF restored IS NULL AND (newest.system_identifier IS NULL OR NOT is_empty) THEN
        UPDATE hookjetty.clusters c SET system_identifier = here
        WHERE c.generation = newest.generation;
    ELSE
        INSERT INTO hookjetty.clusters (generation, system_identifier, from_id)
        VALUES (newest.generation + 1, here, coalesce(restored + 1, newest.from_id));
    END IF;
END $$;


-- ----------------------------------------------------------------------------------------- tasks

-- One event to be delivered to one endpoint. This row is the queue.
--
--                      ┌────────────── lease expired: due again, attempt `interrupted` ──┐
--                      ▼                                                                 │
--   publish ──► pending ──── claim ────► delivering ──── 2xx ────► delivered             │
--      │          │  ▲                      │  │ └───────────────────────────────────────┘
--      │          │  │ released             │  └─ no steps left ─► failed ──┐
--      │          │  └──────────────────────┤                               │ a person retries
--      │          │                         └─ failure ─► retry ◄───────────┘
--      │          │                                       │  ▲
--      └──────► waiting ◄─ endpoint not active or on hold ┘  └── endpoint takes tasks again
--   any open state ── endpoint deleted ──► canceled
--
-- Open: pending, delivering, retry, waiting (its endpoint takes no tasks at present: it is not
-- active, or on hold). `ready` says that the time has come: only ready tasks
-- are in the index that a claim reads, so a million tasks for tomorrow cost it nothing. A promotion
-- sets it when next_try_at passes; for a task under way next_try_at is the end of its lease.
--
-- The indexes read columns that PostgreSQL keeps for them (due_at, rare_status), which are the same
-- before and after a delivery is recorded. So that update, the last one of nearly every task, is
-- "heap-only": it touches no index, and half of each page is left free for it. Whoever looks for
-- tasks by time or by status must name these columns, or no index will answer.
CREATE TABLE IF NOT EXISTS hookjetty.tasks (
    id           bigint NOT NULL,
    tenant_id    bigint NOT NULL,
    endpoint_id  bigint NOT NULL,
    event_id     bigint NOT NULL,
    status       text NOT NULL,
    ready        boolean NOT NULL,
    lane         smallint NOT NULL DEFAULT 0,       -- 0 live, 1 replayed or retried in bulk: yields
    probe        boolean NOT NULL DEFAULT false,    -- its next try passes a hold of the endpoint
    next_try_at  timestamptz,
    tries        integer NOT NULL DEFAULT 0,        -- attempts begun; never reset
    step         smallint NOT NULL DEFAULT 0,       -- place in the retry schedule
    attempt_id   bigint,                            -- the latest attempt: the fence of its recording
    failure      text CHECK (failure IN ('dns', 'connect', 'tls', 'timeout', 'blocked_address',
                                         'too_large', 'redirect', 'http_4xx', 'http_5xx', 'reset',
                                         'bad_response', 'unsendable', 'interrupted', 'expired')),
    replay_id    bigint,
    -- When it is, or became, claimable; null while it is under way (see leases) or out of the queue.
    due_at       timestamptz GENERATED ALWAYS AS (
                     CASE WHEN ready AND probe THEN '-infinity'     -- first of its endpoint's
                          WHEN ready OR status IN ('pending', 'retry') THEN next_try_at END) STORED,
    -- The status, if it is one that people look for and few tasks have.
    rare_status  text GENERATED ALWAYS AS (
                     CASE WHEN status IN ('failed', 'canceled', 'waiting', 'retry')
                          THEN status END) STORED,
    PRIMARY KEY (id),
    -- One CHECK rather than many: PostgreSQL reads each from its text again at every INSERT, and nine
    -- of them were a fifth of what a publish costs. The most frequent states come first.
    CONSTRAINT tasks_are_legal CHECK (
        lane IN (0, 1) AND (lane = 1 OR replay_id IS NULL)
        AND CASE status
            WHEN 'pending'    THEN next_try_at IS NOT NULL
            WHEN 'delivering' THEN next_try_at IS NOT NULL AND attempt_id IS NOT NULL
            WHEN 'delivered'  THEN next_try_at IS NULL AND NOT ready AND failure IS NULL
            WHEN 'retry'      THEN next_try_at IS NOT NULL
            WHEN 'waiting'    THEN next_try_at IS NULL AND NOT ready
            WHEN 'failed'     THEN next_try_at IS NULL AND NOT ready AND failure IS NOT NULL
            WHEN 'canceled'   THEN next_try_at IS NULL AND NOT ready
            ELSE false END)
) PARTITION BY RANGE (id);

-- The claim: hop from endpoint to endpoint, then each one's oldest first, live before replayed.
CREATE INDEX IF NOT EXISTS tasks_ready
    ON hookjetty.tasks (tenant_id, endpoint_id, lane, due_at) WHERE ready;
-- The promotion of tasks whose time has come, and the next wake-up.
CREATE INDEX IF NOT EXISTS tasks_later
    ON hookjetty.tasks (due_at) WHERE due_at IS NOT NULL AND NOT ready;
-- Settling a resumed or deleted endpoint, live tasks before replayed ones; the sweep: which endpoints
-- have waiting tasks; and the next probe: the one that was tried longest ago, never before ever.
CREATE INDEX IF NOT EXISTS tasks_waiting
    ON hookjetty.tasks (endpoint_id, lane, attempt_id NULLS FIRST, id)
    WHERE rare_status = 'waiting';
-- Whether an endpoint on hold has a probe on its way, and its claim past the tasks that are skipped.
CREATE INDEX IF NOT EXISTS tasks_probe ON hookjetty.tasks (endpoint_id) WHERE probe;
-- Both task lists, newest first.
CREATE INDEX IF NOT EXISTS tasks_by_tenant ON hookjetty.tasks (tenant_id, id);
-- The same, of one endpoint; settling a paused one.
CREATE INDEX IF NOT EXISTS tasks_by_endpoint ON hookjetty.tasks (endpoint_id, id);
-- The same, of a status that is rare: otherwise a filter for it would read all of history.
CREATE INDEX IF NOT EXISTS tasks_by_status
    ON hookjetty.tasks (tenant_id, rare_status, id) WHERE rare_status IS NOT NULL;
-- A replay's "has this endpoint an open task of a replay for that event?", and those of an event. An
-- event's other tasks were made with it, right behind its id.
CREATE INDEX IF NOT EXISTS tasks_of_replays
    ON hookjetty.tasks (endpoint_id, event_id) WHERE replay_id IS NOT NULL;

-- What the dispatchers hold: one row per claim, with the tasks that it leased. A dispatcher that has
-- recorded them all deletes the row; of one that is gone, the rest is due again at `ends_at`. An
-- index on the tasks' own leases would have to be written twice for every task.
CREATE TABLE IF NOT EXISTS hookjetty.leases (
    id        bigint PRIMARY KEY,
    ends_at   timestamptz NOT NULL,
    task_ids  bigint[] STORAGE PLAIN NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Those that have ended, and the next one that will.
CREATE INDEX IF NOT EXISTS leases_by_end ON hookjetty.leases (ends_at);


-- -------------------------------------------------------------------------------------- attempts

-- One HTTP request made for a task, and what came back. The id is minted by the claim and is the
-- task's fence: a recording inserts this row whether or not it still holds the task, so every
-- request that went out is on the books, and a late truth replaces `interrupted`. The request is
-- not stored but rebuilt for display: no credential lands here.
CREATE TABLE IF NOT EXISTS hookjetty.attempts (
    id                bigint NOT NULL,
    task_id           bigint NOT NULL,
    tenant_id         bigint NOT NULL,
    endpoint_id       bigint NOT NULL,
    try               integer NOT NULL,
    started_at        timestamptz,          -- null: interrupted, nobody knows whether it was sent
    status_code       smallint,
    failure           text CHECK (failure IN ('dns', 'connect', 'tls', 'timeout', 'blocked_address',
                                              'too_large', 'redirect', 'http_4xx', 'http_5xx',
                                              'reset', 'bad_response', 'unsendable', 'interrupted')),
    -- Microseconds from the start of the attempt to the end of each phase; null: not reached.
    resolve_us        integer,
    connect_us        integer,
    tls_us            integer,
    first_byte_us     integer,
    total_us          integer,
    address           text,                 -- the peer that was connected to
    response_headers  text,
    response_body     text,
    truncated         boolean NOT NULL DEFAULT false,
    resent            boolean NOT NULL DEFAULT false,   -- libcurl repeated it on a new connection
    PRIMARY KEY (id)
) PARTITION BY RANGE (id);

-- A task's attempts, in order.
CREATE INDEX IF NOT EXISTS attempts_by_task ON hookjetty.attempts (task_id, id);


-- --------------------------------------------------------------------------------------- replays

-- A request to deliver an endpoint's past events again. A job walks the tenant's events from
-- `cursor_id` to `upto_id` and makes tasks in lane 1; each batch commits together with the cursor,
-- so a crash leaves neither gap nor repeat.
CREATE TABLE IF NOT EXISTS hookjetty.replays (
    id           bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    tenant_id    bigint NOT NULL,
    endpoint_id  bigint NOT NULL,
    status       text NOT NULL CHECK (status IN ('running', 'finished', 'canceled')),
    from_id      bigint NOT NULL,           -- the watermark, as the smallest id it includes
    upto_id      bigint NOT NULL,           -- the last id it includes, at most that of the request
    cursor_id    bigint NOT NULL,           -- the last event looked at
    -- What narrows it, beside what the endpoint wants: types of events as endpoints name them, and
    -- what became of them there; null: all of them.
    event_types  text[],
    only_those   text CHECK (only_those IN ('failed', 'missing')),
    events       bigint NOT NULL DEFAULT 0, -- looked at
    tasks        bigint NOT NULL DEFAULT 0, -- made
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    CONSTRAINT running_is_not_finished CHECK ((status = 'running') = (finished_at IS NULL))
);
-- At most one running replay per endpoint; the job's work list.
CREATE UNIQUE INDEX IF NOT EXISTS replays_running
    ON hookjetty.replays (endpoint_id) WHERE status = 'running';
-- The list of a tenant's, newest first.
CREATE INDEX IF NOT EXISTS replays_by_tenant ON hookjetty.replays (tenant_id, id);
-- The same, of an endpoint.
CREATE INDEX IF NOT EXISTS replays_by_endpoint ON hookjetty.replays (endpoint_id, id);
-- The same, of a status.
CREATE INDEX IF NOT EXISTS replays_by_status ON hookjetty.replays (tenant_id, status, id);
-- Pruning, when all tasks they made are gone.
CREATE INDEX IF NOT EXISTS replays_by_end ON hookjetty.replays (finished_at);


-- ---------------------------------------------------------------------------------- bulk retries

-- A request to try a tenant's failed (or canceled) tasks again, all that a filter finds. A job walks
-- them from `cursor_id` to `upto_id` and puts them into lane 1; each batch commits together with
-- the cursor, so after a crash it goes on where it was.
CREATE TABLE IF NOT EXISTS hookjetty.bulk_retries (
    id           bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    tenant_id    bigint NOT NULL,
    status       text NOT NULL CHECK (status IN ('running', 'finished', 'canceled')),
    filter       jsonb NOT NULL,            -- app/tasks.py, TaskFilter
    from_id      bigint NOT NULL,           -- no task that it finds has a smaller id
    upto_id      bigint NOT NULL,           -- the moment of the request: later tasks are not its
    cursor_id    bigint NOT NULL,           -- the last task looked at
    looked_at    bigint NOT NULL DEFAULT 0, -- tasks of the filter's status
    tasks        bigint NOT NULL DEFAULT 0, -- retried
    created_at   timestamptz NOT NULL DEFAULT now(),
    finished_at  timestamptz,
    CONSTRAINT running_is_not_finished CHECK ((status = 'running') = (finished_at IS NULL))
);
-- At most one running per tenant; the job's work list.
CREATE UNIQUE INDEX IF NOT EXISTS bulk_retries_running
    ON hookjetty.bulk_retries (tenant_id) WHERE status = 'running';
-- The list of a tenant's, newest first.
CREATE INDEX IF NOT EXISTS bulk_retries_by_tenant ON hookjetty.bulk_retries (tenant_id, id);
-- Pruning, as of replays.
CREATE INDEX IF NOT EXISTS bulk_retries_by_end ON hookjetty.bulk_retries (finished_at);


-- ----------------------------------------------------------- what the API and the dispatchers keep

-- Answers to writes by their X-Request-Id, per tenant (0: an admin or a service), method and path.
-- Inserted first and in the transaction of the work itself, so of fifty at once one does the work
-- and the others wait for its answer. `sealed`: the answer holds a secret and is encrypted.
CREATE TABLE IF NOT EXISTS hookjetty.idempotency_keys (
    owner        bigint NOT NULL,
    method       text NOT NULL,
    path         text NOT NULL,
    key          text NOT NULL,
    body_sha256  bytea NOT NULL,
    status_code  smallint,
    answer       text,
    etag         text,
    sealed       boolean NOT NULL DEFAULT false,
    created_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (owner, method, path, key)
);
-- Pruning after 24 hours.
CREATE INDEX IF NOT EXISTS idempotency_keys_by_age ON hookjetty.idempotency_keys (created_at);

-- Rate limits of all API processes together. UNLOGGED: a crash forgets at most some seconds of
-- counting, and a commit here waits for no disk. A limit is taken by one statement of its own,
-- before the work: as a row lock inside the publishing transaction it cost three quarters of the
-- throughput. The clock is read in the DO UPDATE, when the row is locked, so times never go back.
CREATE UNLOGGED TABLE IF NOT EXISTS hookjetty.rate_limits (
    key         text PRIMARY KEY,
    hits        timestamptz[],       -- sliding log: the accepted ones, oldest first
    tokens      double precision,    -- token bucket: what was left …
    counted_at  timestamptz NOT NULL DEFAULT clock_timestamp(),         -- … at this moment
    wait        double precision     -- what the latest call was told: null, or seconds to wait
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A sliding log: null, and counted, when fewer than `at_most` were accepted within `span`; otherwise
-- the seconds until the next would be. Refused ones do not count.
CREATE OR REPLACE FUNCTION hookjetty.count_hit(limit_key text, at_most integer, span interval)
RETURNS double precision LANGUAGE sql VOLATILE AS $$
    INSERT INTO hookjetty.rate_limits AS r (key, hits)
    VALUES (limit_key, ARRAY[clock_timestamp()])
    ON CONFLICT (key) DO UPDATE SET (hits, counted_at, wait) = (
        SELECT CASE WHEN free THEN recent || moment ELSE recent END,
               moment,
               CASE WHEN NOT free THEN
                   extract(epoch FROM recent[cardinality(recent) - at_most + 1] + span - moment)
               END
        FROM (SELECT moment, recent, cardinality(recent) < at_most AS free
              FROM (SELECT clock_timestamp() AS moment OFFSET 0) m,
                   LATERAL (SELECT ARRAY(SELECT h FROM unnest(r.hits) h
                                         WHERE h > moment - span ORDER BY h) AS recent) l) log)
    RETURNING wait
$$;

-- A token bucket that holds `size` and is refilled at `per_second`: null, and taken, when `cost`
-- tokens are there; otherwise the seconds until they will be. A cost above the size takes it all.
CREATE OR REPLACE FUNCTION hookjetty.take_tokens(
    limit_key text, cost double precision, size double precision, per_second double precision)
RETURNS double precision LANGUAGE sql VOLATILE AS $$
    INSERT INTO hookjetty.rate_limits AS r (key, tokens)
    VALUES (limit_key, greatest(size - cost, 0))
    ON CONFLICT (key) DO UPDATE SET (tokens, counted_at, wait) = (
        SELECT CASE WHEN level >= needed THEN level - needed ELSE level END,
               moment,
               CASE WHEN level < needed THEN (needed - level) / per_second END
        FROM (SELECT moment, least(cost, size) AS needed,
                     least(size, r.tokens + per_second
                           * greatest(0, extract(epoch FROM moment - r.counted_at))) AS level
              FROM (SELECT clock_timestamp() AS moment OFFSET 0) m) bucket)
    RETURNING wait
$$;

-- Heartbeats. `parked`: it has nothing to do and wants to be woken; while nobody is parked, no
-- publish notifies, since NOTIFY serialises commits.
CREATE TABLE IF NOT EXISTS hookjetty.dispatchers (
    id          bigint PRIMARY KEY,
    host        text NOT NULL,
    pid         integer NOT NULL,
    parked      boolean NOT NULL DEFAULT false,
    in_flight   integer NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);

-- Wake one parked dispatcher when this transaction commits: the one that was heard of last, so that
-- one that is gone is asked for a few seconds at most. All others would look, too, and find nothing.
CREATE OR REPLACE FUNCTION hookjetty.wake() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    chosen bigint;
BEGIN
    SELECT d.id INTO chosen FROM hookjetty.dispatchers d
    WHERE d.parked AND d.seen_at > clock_timestamp() - interval '30 s'
    ORDER BY d.seen_at DESC LIMIT 1;
    IF FOUND THEN
        PERFORM pg_notify('hookjetty', 'tasks ' || chosen);
    END IF;
END $$;


-- ----------------------------------------------------------------- people's actions and erasures

-- What people did over the API, written in the transaction that did it. Names things and holds
-- nothing of their contents: no body, no URL, no secret. The id is the time, of new_id(). Kept for
-- HOOKJETTY_AUDIT_DAYS.
CREATE TABLE IF NOT EXISTS hookjetty.audit (
    id           bigint PRIMARY KEY,
    tenant_id    bigint,                -- whose things; null: no tenant's
    actor        text NOT NULL,         -- the token's subject, 255 characters of it
    role         text NOT NULL CHECK (role IN ('admin', 'service', 'tenant')),
    action       text NOT NULL,         -- the operation, as the API names it, without admin_
    object       text,                  -- what it was done to: ep_7, task_4711 …
    address      text,                  -- the connection's other side
    request_id   text NOT NULL,
    status_code  smallint NOT NULL      -- what was answered
);
-- The log of one tenant, and its erasure.
CREATE INDEX IF NOT EXISTS audit_by_tenant ON hookjetty.audit (tenant_id, id);
-- The log of one person.
CREATE INDEX IF NOT EXISTS audit_by_actor ON hookjetty.audit (actor, id);

-- A request to delete all that is known of a tenant up to its moment. A job (dispatcher/tenant_erasures.py)
-- goes through the tables in rounds and deletes what it finds; a round that finds nothing is the
-- proof, and what it counted is the report of what is left. The second round begins when every
-- transaction of the first one's time is over, so nobody can commit an old row after the proof.
CREATE TABLE IF NOT EXISTS hookjetty.tenant_erasures (
    id                bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    tenant_id         bigint NOT NULL,
    status            text NOT NULL CHECK (status IN ('running', 'finished')),
    upto_id           bigint NOT NULL,              -- the moment: the largest id that goes
    upto_endpoint_id  bigint NOT NULL,              -- the last endpoint that goes
    round             integer NOT NULL DEFAULT 1,
    part              smallint NOT NULL DEFAULT 0,  -- place in the order of the tables
    cursor_id         bigint NOT NULL DEFAULT 0,    -- the last row there that was looked at
    found             jsonb NOT NULL DEFAULT '{}',  -- rows in this round, by table
    deleted           jsonb NOT NULL DEFAULT '{}',  -- rows in all rounds, by table
    horizon           xid8,                         -- every transaction below it must have ended
    created_at        timestamptz NOT NULL DEFAULT now(),
    finished_at       timestamptz,
    CONSTRAINT running_is_not_finished CHECK ((status = 'running') = (finished_at IS NULL))
);
-- One at a time of a tenant; the job's work list.
CREATE UNIQUE INDEX IF NOT EXISTS tenant_erasures_running
    ON hookjetty.tenant_erasures (tenant_id) WHERE status = 'running';
-- The erasures of one tenant, newest first.
CREATE INDEX IF NOT EXISTS tenant_erasures_by_tenant ON hookjetty.tenant_erasures (tenant_id, id);


-- ------------------------------------------------------------------------------------- partitions

-- Weekly partitions of events, tasks and attempts: the week of `first` and `weeks` more. Called at
-- every start and daily. A partition is made aside and then attached, which does not lock out the
-- readers and writers of the others as CREATE TABLE … PARTITION OF would.
CREATE OR REPLACE FUNCTION hookjetty.make_partitions(
    first timestamptz DEFAULT now(), weeks integer DEFAULT 8)
RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    parent text; week timestamptz; partition text; made integer := 0;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('hookjetty.make_partitions'));
    FOR week IN SELECT date_trunc('week', first, 'UTC') + n * interval '7 days'
                FROM generate_series(0, weeks) n
    LOOP
        FOREACH parent IN ARRAY ARRAY['events', 'tasks', 'attempts'] LOOP
            partition := parent || to_char(week AT TIME ZONE 'UTC', '_IYYY"w"IW');
            CONTINUE WHEN to_regclass('hookjetty.' || partition) IS NOT NULL;
            EXECUTE format('CREATE TABLE hookjetty.%I (LIKE hookjetty.%I INCLUDING ALL)',
                           partition, parent);
            -- Tasks are updated twice in their life, attempts and events never: vacuum the former
            -- by number, not by share, or its dead index entries would outgrow the live ones.
            IF parent = 'tasks' THEN
                EXECUTE format('ALTER TABLE hookjetty.%I SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02,
                    autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0,
                    autovacuum_analyze_scale_factor = 0.05)', partition);
            END IF;
            EXECUTE format('ALTER TABLE hookjetty.%I ATTACH PARTITION hookjetty.%I
                            FOR VALUES FROM (%s) TO (%s)', parent, partition,
                           hookjetty.id_at(week), hookjetty.id_at(week + interval '7 days'));
            made := made + 1;
        END LOOP;
    END LOOP;
    RETURN made;
END $$;

SELECT hookjetty.make_partitions();

-- The partitions there are, and the ids each holds: retention, readiness, tests.
CREATE OR REPLACE VIEW hookjetty.partitions AS
SELECT p.relname::text AS parent, c.relname::text AS name,
       b.bounds[1]::bigint AS from_id, b.bounds[2]::bigint AS upto_id, i.inhdetachpending AS detaching
FROM pg_inherits i
JOIN pg_class c ON c.oid = i.inhrelid
JOIN pg_class p ON p.oid = i.inhparent AND p.relkind = 'p'
CROSS JOIN LATERAL (SELECT regexp_match(pg_get_expr(c.relpartbound, c.oid),
                                        'FROM \(''?(\d+)''?\) TO \(''?(\d+)''?\)')) b (bounds)
WHERE p.relnamespace = 'hookjetty'::regnamespace;


-- --------------------------------------------------------------------------------------- publish

-- The subscriptions that match a type: export.done is wanted by 'export.done', 'export.*' and '*'.
-- An operational event (hookjetty.endpoint.disabled) is none of '*': who wants it names it.
CREATE OR REPLACE FUNCTION hookjetty.patterns_for(type text) RETURNS text[]
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS $$
DECLARE
    patterns text[] := CASE WHEN starts_with(type, 'hookjetty.') THEN ARRAY[type]
                            ELSE ARRAY['*', type] END;
    dot      integer := position('.' IN type);
BEGIN
    WHILE dot > 0 LOOP
        patterns := patterns || (left(type, dot) || '*');
        dot := dot + nullif(position('.' IN substr(type, dot + 1)), 0);
    END LOOP;
    RETURN patterns;
END $$;

-- Whether an event is as nearly all are: short, and nothing wrong with it. One expression, which the
-- planner puts in place of the call (about 8 us). objection_to_event decides about all others.
CREATE OR REPLACE FUNCTION hookjetty.is_plain_event(type text, data json, key text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT length(type) <= 128 AND type ~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$'
       AND NOT starts_with(type, 'hookjetty.')
       AND (key IS NULL OR length(key) BETWEEN 1 AND 255)
       AND octet_length(data::text) <= 1000
       -- The cast raises what text cannot hold, with a better message than the next test would have.
       AND NOT jsonb_path_exists(data::jsonb, 'strict $.**{128}')
       AND data IS JSON OBJECT WITH UNIQUE KEYS
$$;

-- Why an event cannot be accepted, as "field: reason", or null.
CREATE OR REPLACE FUNCTION hookjetty.objection_to_event(type text, data json, key text)
RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    IF type IS NULL OR length(type) > 128 OR type !~ '^[a-zA-Z0-9_]+(\.[a-zA-Z0-9_]+)*$' THEN
        RETURN 'type: must be segments of letters, digits and _ joined by dots, '
               'such as export.done, of at most 128 characters';
    ELSIF starts_with(type, 'hookjetty.') THEN
        RETURN 'type: the prefix hookjetty. is reserved for operational events';
    ELSIF key IS NOT NULL AND length(key) NOT BETWEEN 1 AND 255 THEN
        RETURN 'key: must have 1 to 255 characters';
    END IF;
    RETURN 'data: ' || hookjetty.objection_to(data);
END $$;

-- Why an event's data cannot be accepted, or null. Cheap tests first (counting brackets, looking for
-- a long run of digits); only what they suspect is walked.
CREATE OR REPLACE FUNCTION hookjetty.objection_to(data json) RETURNS text
LANGUAGE plpgsql IMMUTABLE AS $$
DECLARE
    source text := data::text;
    parsed jsonb;
BEGIN
    IF octet_length(source) > 262144 THEN
        RETURN 'is longer than 256 KiB (262144 bytes)';
    ELSIF data IS NULL OR NOT (data IS JSON OBJECT) THEN
        RETURN 'must be a JSON object';
    END IF;
    -- What text cannot hold (NUL, half a surrogate pair, a number past all bounds) raises here, and
    -- with a better message than the next test would have for it.
    parsed := data::jsonb;
    IF NOT (data IS JSON OBJECT WITH UNIQUE KEYS) THEN
        RETURN 'has an object that names a key twice';
    ELSIF length(source) - length(translate(source, '[{', '')) > 128
          AND jsonb_path_exists(parsed, 'strict $.**{128}') THEN
        RETURN 'is nested more than 128 levels deep';
    ELSIF hookjetty.has_long_number(source)
          AND hookjetty.has_long_number(
                  regexp_replace(source, '"([^"\\]|\\.)*"', '""', 'g')) THEN
        RETURN 'has a number of more than 1000 characters';
    END IF;
    RETURN NULL;
END $$;

-- Whether a run of 1,001 characters that make up numbers occurs in a text.
CREATE OR REPLACE FUNCTION hookjetty.has_long_number(source text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT length(source) > 1000
       AND position(repeat('0', 1001) IN translate(source, '123456789.eE+-', repeat('0', 14))) > 0
$$;

CREATE OR REPLACE FUNCTION hookjetty.refuse(objection text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'invalid_parameter_value', MESSAGE = objection;
END $$;

-- So many different ids, ascending.
CREATE OR REPLACE FUNCTION hookjetty.new_ids(number integer) RETURNS bigint[]
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ids bigint[] := '{}';
BEGIN
    WHILE cardinality(ids) < number LOOP
        ids := ARRAY(SELECT i FROM unnest(ids) i
                     UNION SELECT hookjetty.new_id() FROM generate_series(1, number - cardinality(ids))
                     ORDER BY 1);
    END LOOP;
    RETURN ids;
END $$;

-- Make a task for each pair of an event and an endpoint: due now where the endpoint is callable,
-- waiting where it is not. The only place where publishing makes tasks.
--
-- ON CONFLICT without (id): no other constraint of the table is unique, and naming it would look up
-- the partition's eight indexes in the catalog each time, a sixth of what a publish costs.
CREATE OR REPLACE FUNCTION hookjetty.make_tasks(
    tenant_id bigint, events bigint[], endpoints bigint[], callable boolean[])
RETURNS void LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    made integer;
BEGIN
    LOOP
        INSERT INTO hookjetty.tasks
            (id, tenant_id, endpoint_id, event_id, status, ready, next_try_at)
        SELECT hookjetty.new_id(), make_tasks.tenant_id, m.endpoint, m.event,
               CASE WHEN m.callable THEN 'pending' ELSE 'waiting' END,
               m.callable,
               CASE WHEN m.callable THEN now() END
        FROM unnest(make_tasks.events, make_tasks.endpoints, make_tasks.callable)
             m (event, endpoint, callable)
        ON CONFLICT DO NOTHING;
        GET DIAGNOSTICS made = ROW_COUNT;
        EXIT WHEN made = cardinality(make_tasks.events);
        -- Some ids were taken: once more, for the pairs that got no task.
        SELECT coalesce(array_agg(m.event), '{}'), array_agg(m.endpoint), array_agg(m.callable)
        INTO make_tasks.events, make_tasks.endpoints, make_tasks.callable
        FROM unnest(make_tasks.events, make_tasks.endpoints, make_tasks.callable)
             m (event, endpoint, callable)
        WHERE NOT EXISTS (SELECT FROM hookjetty.tasks t
                          WHERE t.endpoint_id = m.endpoint AND t.event_id = m.event);
    END LOOP;
END $$;

-- Publish one event: publish_event() without its rights, for the API, which also wants to know
-- whether the event is new or its key was known.
CREATE OR REPLACE FUNCTION hookjetty.publish(
    tenant_id bigint, type text, data json, key text,
    OUT event_id bigint, OUT tasks integer, OUT is_new boolean)
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    patterns text[];
    wanting  bigint[];      -- endpoints that get a task
    callable boolean[];     -- … and which of them may be called now
BEGIN
    -- 1. Refuse what could not be delivered or found again.
    IF publish.tenant_id BETWEEN 1 AND 9007199254740991 IS NOT TRUE THEN
        PERFORM hookjetty.refuse('tenant_id: must be an integer from 1 to 9007199254740991');
    END IF;
    IF hookjetty.is_plain_event(publish.type, publish.data, publish.key) IS NOT TRUE THEN
        PERFORM hookjetty.refuse(o)
        FROM hookjetty.objection_to_event(publish.type, publish.data, publish.key) o
        WHERE o IS NOT NULL;
    END IF;

    -- 2. A known key: the first event's answer. A concurrent publish of the same key is waited for.
    event_id := hookjetty.new_id();
    IF publish.key IS NOT NULL THEN
        INSERT INTO hookjetty.event_keys (tenant_id, key, event_id)
        VALUES (publish.tenant_id, publish.key, publish.event_id)
        ON CONFLICT (tenant_id, key) DO NOTHING;
        IF NOT FOUND THEN
            SELECT k.event_id, coalesce(e.fanout, 0), false
            INTO publish.event_id, publish.tasks, publish.is_new
            FROM hookjetty.event_keys k LEFT JOIN hookjetty.events e ON e.id = k.event_id
            WHERE k.tenant_id = publish.tenant_id AND k.key = publish.key;
            RETURN;
        END IF;
    END IF;

    -- 3. Who wants it, and the event itself.
    patterns := hookjetty.patterns_for(publish.type);
    SELECT array_agg(e.id), array_agg(e.status = 'active' AND e.hold_until IS NULL)
    INTO wanting, callable
    FROM hookjetty.endpoints e
    WHERE e.tenant_id = publish.tenant_id AND e.status <> 'deleted' AND e.events && patterns;
    is_new := true;
    tasks := coalesce(cardinality(wanting), 0);
    LOOP
        INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
        VALUES (publish.event_id, publish.tenant_id, publish.type, publish.data, publish.tasks)
        ON CONFLICT DO NOTHING;
        EXIT WHEN FOUND;
        event_id := hookjetty.new_id();
        UPDATE hookjetty.event_keys k SET event_id = publish.event_id
        WHERE k.tenant_id = publish.tenant_id AND k.key = publish.key;
    END LOOP;

    -- 4. Its tasks, and a dispatcher that said it has nothing to do.
    IF tasks > 0 THEN
        PERFORM hookjetty.make_tasks(publish.tenant_id, array_fill(publish.event_id, ARRAY[tasks]),
                                     wanting, callable);
        PERFORM hookjetty.wake();
    END IF;
END $$;

-- For the API: take a token of the tenant's bucket, commit that, and then publish one event. In one
-- round trip, and yet in two transactions: within one, the bucket's row would stay locked until the
-- event is committed, and all that the tenant publishes meanwhile would queue behind it. The
-- tenant's own limit goes before the one that is given, and is what `per_second` returns. `wait` is
-- what take_tokens said; where it is not null, nothing was published.
CREATE OR REPLACE PROCEDURE hookjetty.publish_within_limit(
    tenant_id bigint, type text, data json, key text, INOUT per_second double precision,
    OUT wait double precision, OUT event_id bigint, OUT tasks integer, OUT is_new boolean)
LANGUAGE plpgsql AS $$
BEGIN
    per_second := coalesce((SELECT t.events_per_second FROM hookjetty.tenants t
                            WHERE t.id = publish_within_limit.tenant_id), per_second);
    wait := hookjetty.take_tokens('events:' || tenant_id, 1, per_second, per_second);
    COMMIT;
    IF wait IS NULL THEN
        SELECT * INTO event_id, tasks, is_new FROM hookjetty.publish(tenant_id, type, data, key);
    END IF;
END $$;

-- Tell the world that something happened: inserts the event and one task per endpoint that wants it,
-- in the caller's transaction, and returns the event's id and the number of tasks. The event exists
-- if and only if that transaction commits. `key` is idempotent per tenant: a second publish with it
-- returns the first event. Under REPEATABLE READ a concurrent `key` raises 40001: try again.
--
-- Bad input raises 22023 (invalid_parameter_value) with "field: reason"; JSON that PostgreSQL itself
-- cannot hold raises its own 22xxx.
--
-- Only reads tenants and endpoints, so that one caller's long transaction blocks nobody. SECURITY
-- DEFINER with a pinned search_path: the role hookjetty_publisher may execute this, publish_events
-- and publish_row, and nothing else.
CREATE OR REPLACE FUNCTION hookjetty.publish_event(
    tenant_id bigint, type text, data json, key text DEFAULT NULL)
RETURNS TABLE (event_id bigint, tasks integer)
LANGUAGE plpgsql ROWS 1 SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    is_new boolean;
BEGIN
    SELECT * INTO event_id, tasks, is_new FROM hookjetty.publish(tenant_id, type, data, key);
    RETURN NEXT;
END $$;

-- Publish a list of 1 to 1,000 events of one tenant, [{"type": …, "data": {…}, "key": …}, …], `key`
-- being optional: all of them or, if one cannot be accepted, none. Returns their ids and numbers of
-- tasks in the order of the list. Otherwise as publish_event, at a tenth of its cost per event; a
-- reason names the event by its place, as in "events.3.type: …".
--
-- Keys are taken in sorted order: two lists with keys in common wait for each other, and never for
-- each other both ways. Of a key that is repeated in the list the first event is published.
CREATE OR REPLACE FUNCTION hookjetty.publish_events(tenant_id bigint, events json)
RETURNS TABLE (event_id bigint, tasks integer)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
#variable_conflict use_column
DECLARE
    -- The list column by column, by place: what came in, an id for each event, and the id to answer
    -- with, which is another one where the key was known.
    types      text[];
    texts      json[];
    keys       text[];
    is_plain   boolean;
    ids        bigint[];
    answers    bigint[];
    fanouts    integer[];
    -- The endpoints that get a task, and for the event at which place.
    places     bigint[];
    endpoints  bigint[];
    callable   boolean[];
    made       bigint[];
    place      bigint;
    new_event  bigint;
BEGIN
    -- 1. Refuse what could not be delivered or found again.
    IF publish_events.tenant_id BETWEEN 1 AND 9007199254740991 IS NOT TRUE THEN
        PERFORM hookjetty.refuse('tenant_id: must be an integer from 1 to 9007199254740991');
    ELSIF json_typeof(publish_events.events) <> 'array' IS NOT FALSE
          OR json_array_length(publish_events.events) NOT BETWEEN 1 AND 1000 THEN
        PERFORM hookjetty.refuse('events: must be a list of 1 to 1000 events');
    END IF;
    SELECT array_agg(e.type), array_agg(e.data), array_agg(e.key),
           publish_events.events IS JSON WITH UNIQUE KEYS
           AND bool_and(hookjetty.is_plain_event(e.type, e.data, e.key) IS TRUE
                        AND e.event - '{type,data,key}'::text[] = '{}'
                        AND jsonb_typeof(e.event -> 'type') = 'string'
                        AND (e.key IS NULL OR jsonb_typeof(e.event -> 'key') = 'string'))
    INTO types, texts, keys, is_plain
    FROM ROWS FROM (
        json_to_recordset(publish_events.events) AS (type text, data json, key text),
        jsonb_array_elements(publish_events.events::jsonb)) e (type, data, key, event);
    IF NOT is_plain THEN
        PERFORM hookjetty.refuse(format('events.%s%s', e.place - 1, e.objection))
        FROM (SELECT e.place,
                     CASE WHEN e.event - '{type,data,key}'::text[] <> '{}'
                          THEN ': has a member other than type, data and key'
                          WHEN jsonb_typeof(e.event -> 'type') <> 'string'
                          THEN '.type: must be a string'
                          WHEN jsonb_typeof(e.event -> 'key') NOT IN ('string', 'null')
                          THEN '.key: must be a string'
                          ELSE '.' || hookjetty.objection_to_event(e.type, e.data, e.key)
                     END AS objection
              FROM ROWS FROM (unnest(types), unnest(texts), unnest(keys),
                              jsonb_array_elements(publish_events.events::jsonb))
                   WITH ORDINALITY e (type, data, key, event, place)
              OFFSET 0) e
        WHERE e.objection IS NOT NULL;
        IF NOT publish_events.events IS JSON WITH UNIQUE KEYS THEN
            PERFORM hookjetty.refuse('events: one of them names a member twice');
        END IF;
    END IF;

    -- 2. Known keys.
    ids := hookjetty.new_ids(cardinality(types));
    answers := ids;
    IF cardinality(array_remove(keys, NULL)) > 0 THEN
        INSERT INTO hookjetty.event_keys (tenant_id, key, event_id)
        SELECT publish_events.tenant_id, first.key, first.id
        FROM (SELECT DISTINCT ON (e.key COLLATE "C") e.key, e.id
              FROM unnest(keys, ids) WITH ORDINALITY e (key, id, place)
              WHERE e.key IS NOT NULL
              ORDER BY e.key COLLATE "C", e.place) first
        ON CONFLICT (tenant_id, key) DO NOTHING;
        SELECT array_agg(coalesce(k.event_id, e.id) ORDER BY e.place)
        INTO answers
        FROM unnest(keys, ids) WITH ORDINALITY e (key, id, place)
        LEFT JOIN hookjetty.event_keys k
               ON k.tenant_id = publish_events.tenant_id AND k.key = e.key;
    END IF;

    -- 3. Who wants the new ones. Each type is looked up once.
    WITH wanted AS MATERIALIZED (
        SELECT t.type, array_agg(e.id) AS endpoints,
               array_agg(e.status = 'active' AND e.hold_until IS NULL) AS callable
        FROM (SELECT d.type, hookjetty.patterns_for(d.type) AS patterns
              FROM (SELECT DISTINCT unnest(types) AS type) d OFFSET 0) t
        JOIN hookjetty.endpoints e
          ON e.tenant_id = publish_events.tenant_id AND e.status <> 'deleted'
             AND e.events && t.patterns
        GROUP BY t.type),
    fresh AS MATERIALIZED (
        SELECT e.place, w.endpoints, w.callable
        FROM unnest(types, ids, answers) WITH ORDINALITY e (type, id, answer, place)
        LEFT JOIN wanted w ON w.type = e.type AND e.id = e.answer)
    SELECT (SELECT array_agg(coalesce(cardinality(f.endpoints), 0) ORDER BY f.place) FROM fresh f),
           p.places, p.endpoints, p.callable
    INTO fanouts, places, endpoints, callable
    FROM (SELECT array_agg(f.place) AS places, array_agg(w.endpoint) AS endpoints,
                 array_agg(w.callable) AS callable
          FROM fresh f, unnest(f.endpoints, f.callable) w (endpoint, callable)) p;

    -- 4. The events themselves; one whose id was taken, once more by itself.
    WITH inserted AS (
        INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
        SELECT e.id, publish_events.tenant_id, e.type, e.data, e.fanout
        FROM unnest(ids, answers, types, texts, fanouts) e (id, answer, type, data, fanout)
        WHERE e.id = e.answer
        ON CONFLICT DO NOTHING
        RETURNING id)
    SELECT array_agg(i.id) INTO made FROM inserted i;
    FOR place IN
        SELECT e.place FROM unnest(ids, answers) WITH ORDINALITY e (id, answer, place)
        WHERE e.id = e.answer AND e.id <> ALL (coalesce(made, '{}'))
    LOOP
        LOOP
            new_event := hookjetty.new_id();
            INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
            VALUES (new_event, publish_events.tenant_id, types[place], texts[place], fanouts[place])
            ON CONFLICT DO NOTHING;
            EXIT WHEN FOUND;
        END LOOP;
        UPDATE hookjetty.event_keys k SET event_id = new_event
        WHERE k.tenant_id = publish_events.tenant_id AND k.key = keys[place];
        answers := array_replace(answers, ids[place], new_event);
        ids[place] := new_event;
    END LOOP;

    -- 5. Their tasks, and a dispatcher that said it has nothing to do.
    IF cardinality(places) > 0 THEN
        PERFORM hookjetty.make_tasks(publish_events.tenant_id,
                                     ARRAY(SELECT ids[p] FROM unnest(places) p),
                                     endpoints, callable);
        PERFORM hookjetty.wake();
    END IF;
    RETURN QUERY
    SELECT e.answer,
           CASE WHEN e.answer = e.id THEN e.fanout
                ELSE coalesce((SELECT x.fanout FROM hookjetty.events x WHERE x.id = e.answer), 0)
           END
    FROM unnest(ids, answers, fanouts) WITH ORDINALITY e (id, answer, fanout, place)
    ORDER BY e.place;
END $$;

-- Publish a table's rows, without touching the program that writes them:
--
--   CREATE TRIGGER export_done AFTER INSERT ON exports FOR EACH ROW
--   EXECUTE FUNCTION hookjetty.publish_row('export.done', 'tenant_id', 'id');
--
-- The arguments are the type, the column that names the tenant and, if wanted, the one whose value is
-- the event's key. `data` is the row as JSON, whatever the session's settings say about how values
-- are written. The event exists if and only if the row's transaction commits; what cannot be
-- published is an error, and the row is not written either.
--
-- It runs with the rights of whoever writes the row, who needs hookjetty_publisher, as whoever makes
-- the trigger does. With ours, so would a cast to json of the table's owner, which row_to_json calls.
-- (No check could help: it would see the catalog of the transaction's snapshot, and the conversion
-- sees that of the moment.)
CREATE OR REPLACE FUNCTION hookjetty.publish_row() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET timezone = 'UTC'
SET intervalstyle = 'iso_8601' SET bytea_output = 'hex' SET extra_float_digits = 1 AS $$
DECLARE
    named    text := format('publish_row on %I.%I', TG_TABLE_SCHEMA, TG_TABLE_NAME);
    data     json;
    tenant   text;
    virtual  text;
BEGIN
    IF TG_LEVEL <> 'ROW' OR TG_WHEN <> 'AFTER' OR TG_OP NOT IN ('INSERT', 'UPDATE') THEN
        RAISE EXCEPTION '%: must be a trigger AFTER INSERT OR UPDATE … FOR EACH ROW', named
              USING ERRCODE = 'trigger_protocol_violated';
    ELSIF TG_NARGS NOT IN (2, 3) THEN
        RAISE EXCEPTION '%: takes an event type, the column that names the tenant, and perhaps the'
                        ' one that names the key', named
              USING ERRCODE = 'trigger_protocol_violated';
    END IF;
    SELECT a.attname INTO virtual FROM pg_attribute a
    WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND a.attgenerated = 'v';
    IF FOUND THEN  -- a trigger gets it as null
        RAISE EXCEPTION '%: the column % is computed when it is read; make it STORED', named,
              virtual
              USING ERRCODE = 'feature_not_supported';
    END IF;
    data := row_to_json(NEW);
    tenant := data ->> TG_ARGV[1];
    IF data -> TG_ARGV[1] IS NULL OR data -> TG_ARGV[2] IS NULL AND TG_NARGS = 3 THEN
        RAISE EXCEPTION '%: the table has no column %', named,
              CASE WHEN data -> TG_ARGV[1] IS NULL THEN TG_ARGV[1] ELSE TG_ARGV[2] END
              USING ERRCODE = 'undefined_column';
    ELSIF (tenant ~ '^[1-9][0-9]{0,15}$') IS NOT TRUE THEN
        RAISE EXCEPTION '%: the column % names no tenant: it is %', named, TG_ARGV[1],
              coalesce(left(tenant, 40), 'null')
              USING ERRCODE = 'invalid_parameter_value';
    ELSIF octet_length(data::text) > 262144 THEN
        RAISE EXCEPTION '%: the row is longer than 256 KiB as JSON (% bytes)', named,
              octet_length(data::text)
              USING ERRCODE = 'invalid_parameter_value';
    END IF;
    PERFORM hookjetty.publish_event(tenant::bigint, TG_ARGV[0], data, data ->> TG_ARGV[2]);
    RETURN NULL;
END $$;


-- ----------------------------------------------------------------------------- operational events

-- Tell what happened to tenants' endpoints, tasks and replays, of types hookjetty.*: the fact that
-- stands at each place of the lists becomes an event of its tenant, if some endpoint names its type,
-- and one of tenant 0, the operator, whose copy also says which tenant it is about. Where nobody
-- wants to know, nothing is written. Part of the transaction that made it so.
--
-- What happens to the operator's own endpoints is told to nobody, so that no failure begets another.
-- Raises 40001 when an id is taken (see "ids"): all who call this try again.
CREATE OR REPLACE FUNCTION hookjetty.tell(tenants bigint[], types text[], facts json[])
RETURNS integer LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    -- The events that are wanted, column by column, by place …
    owners     bigint[];
    kinds      text[];
    texts      json[];
    fanouts    integer[];
    -- … and the endpoints that get a task, for the event at which place.
    places     bigint[];
    endpoints  bigint[];
    callable   boolean[];
    ids        bigint[];
    made       integer;
BEGIN
    WITH told AS MATERIALIZED (
        SELECT row_number() OVER () AS place, c.*
        FROM (SELECT f.tenant_id, f.type, f.fact, hookjetty.patterns_for(f.type) AS patterns
              FROM unnest(tenants, types, facts) f (tenant_id, type, fact) WHERE f.tenant_id <> 0
              UNION ALL
              -- The operator has no other events, so there '*' is all of these.
              SELECT 0, f.type,
                     format('{"tenant_id":%s,%s', f.tenant_id, substr(f.fact::text, 2))::json,
                     hookjetty.patterns_for(f.type) || '*'::text
              FROM unnest(tenants, types, facts) f (tenant_id, type, fact) WHERE f.tenant_id <> 0
             ) c),
    -- Who wants to know, asked once about a tenant's type: all of its tasks may fail at once.
    listeners AS MATERIALIZED (
        SELECT c.tenant_id, c.type, e.endpoints, e.callable
        FROM (SELECT DISTINCT t.tenant_id, t.type, t.patterns FROM told t) c
        CROSS JOIN LATERAL (
            SELECT array_agg(n.id) AS endpoints,
                   array_agg(n.status = 'active' AND n.hold_until IS NULL) AS callable
            FROM hookjetty.endpoints n
            WHERE n.tenant_id = c.tenant_id AND n.status <> 'deleted' AND n.events && c.patterns) e
        WHERE e.endpoints IS NOT NULL),
    wanted AS MATERIALIZED (
        SELECT row_number() OVER (ORDER BY t.place) AS place, t.tenant_id, t.type, t.fact,
               l.endpoints, l.callable
        FROM told t JOIN listeners l ON l.tenant_id = t.tenant_id AND l.type = t.type)
    SELECT w.*, p.* INTO owners, kinds, texts, fanouts, places, endpoints, callable
    FROM (SELECT array_agg(w.tenant_id ORDER BY w.place), array_agg(w.type ORDER BY w.place),
                 array_agg(w.fact ORDER BY w.place),
                 array_agg(cardinality(w.endpoints) ORDER BY w.place) FROM wanted w) w,
         (SELECT array_agg(w.place), array_agg(n.endpoint), array_agg(n.callable)
          FROM wanted w, unnest(w.endpoints, w.callable) n (endpoint, callable)) p;
    IF owners IS NULL THEN
        RETURN 0;
    END IF;

    ids := hookjetty.new_ids(cardinality(owners));
    INSERT INTO hookjetty.events (id, tenant_id, type, data, fanout)
    SELECT e.id, e.tenant_id, e.type, e.fact, e.fanout
    FROM unnest(ids, owners, kinds, texts, fanouts) e (id, tenant_id, type, fact, fanout)
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS made = ROW_COUNT;
    IF made < cardinality(ids) THEN
        RAISE EXCEPTION USING ERRCODE = 'serialization_failure',
            MESSAGE = 'an id was taken in this moment; try again';
    END IF;
    PERFORM hookjetty.make_tasks(t.tenant_id, t.events, t.endpoints, t.callable)
    FROM (SELECT owners[p.place] AS tenant_id, array_agg(ids[p.place]) AS events,
                 array_agg(p.endpoint) AS endpoints, array_agg(p.callable) AS callable
          FROM unnest(places, endpoints, callable) p (place, endpoint, callable)
          GROUP BY owners[p.place]) t;
    PERFORM hookjetty.wake();
    RETURN made;
END $$;

-- Functions are executable by everybody unless said otherwise.
REVOKE ALL ON ALL ROUTINES IN SCHEMA hookjetty FROM PUBLIC;

-- The role for services that share this database. Roles belong to the whole cluster, so this needs a
-- privilege that the owner of one database may lack; `hookjetty db` then prints what to run.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'hookjetty_publisher') THEN
        CREATE ROLE hookjetty_publisher NOLOGIN;
    END IF;
EXCEPTION WHEN insufficient_privilege OR duplicate_object OR unique_violation THEN
    NULL;
END $$;
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'hookjetty_publisher') THEN
        GRANT USAGE ON SCHEMA hookjetty TO hookjetty_publisher;
        GRANT EXECUTE ON FUNCTION hookjetty.publish_event(bigint, text, json, text),
                                  hookjetty.publish_events(bigint, json), hookjetty.publish_row()
            TO hookjetty_publisher;
    END IF;
END $$;

SELECT hookjetty.note_cluster();
