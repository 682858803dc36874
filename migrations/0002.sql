-- Version 2: endpoints' health, own settings and descriptions; test events; tasks whose last update
-- touches no index.
--
-- Rewrites all partitions of tasks (a generated column) and makes five of their indexes anew.

ALTER TABLE hookjetty.endpoints
    ADD COLUMN recovered_at timestamptz,
    ADD COLUMN slots smallint CHECK (slots BETWEEN 1 AND 1000),
    ADD COLUMN timeout_seconds real CHECK (timeout_seconds > 0 AND timeout_seconds <= 30),
    ADD COLUMN retry_schedule real[] CHECK (array_ndims(retry_schedule) = 1
                                            AND cardinality(retry_schedule) BETWEEN 1 AND 32
                                            AND array_position(retry_schedule, NULL) IS NULL
                                            AND 0 <= ALL (retry_schedule)
                                            AND 2592000 >= ALL (retry_schedule)),
    ADD CONSTRAINT endpoints_failures_check CHECK (failures >= 0),
    ADD CONSTRAINT failures_have_a_beginning CHECK ((failures > 0) = (failing_since IS NOT NULL)),
    DROP CONSTRAINT endpoints_reason_check,
    ADD CONSTRAINT endpoints_reason_check CHECK (reason IN ('gone', 'failing')),
    ADD COLUMN description text CHECK (length(description) BETWEEN 1 AND 500),
    ADD COLUMN metadata jsonb NOT NULL DEFAULT '{}' CHECK (jsonb_typeof(metadata) = 'object'),
    ADD COLUMN checks_signatures boolean NOT NULL DEFAULT false,
    ADD COLUMN verifies_signatures boolean,
    DROP CONSTRAINT only_pending_has_handshake,
    ADD CONSTRAINT only_who_is_asked_has_handshake CHECK (
        handshake_at IS NULL OR status = 'pending' OR (status = 'active' AND checks_signatures));
DROP INDEX hookjetty.endpoints_settling;

-- The operator is tenant 0, and a tenant may have limits of its own.
ALTER TABLE hookjetty.tenants
    DROP CONSTRAINT tenants_id_check,
    ADD CONSTRAINT tenants_id_check CHECK (id BETWEEN 0 AND 9007199254740991),
    ADD COLUMN requests_per_second integer CHECK (requests_per_second BETWEEN 1 AND 100000),
    ADD COLUMN registrations_per_minute integer
        CHECK (registrations_per_minute BETWEEN 1 AND 100000),
    ADD COLUMN replays_per_minute integer CHECK (replays_per_minute BETWEEN 1 AND 100000),
    ADD COLUMN events_per_second integer CHECK (events_per_second BETWEEN 1 AND 1000000),
    ADD COLUMN endpoints integer CHECK (endpoints BETWEEN 1 AND 1000);

-- An event's data can be erased, and a test event is for one endpoint.
ALTER TABLE hookjetty.events
    ALTER COLUMN data DROP NOT NULL,
    ADD COLUMN endpoint_id bigint;
ALTER TABLE hookjetty.idempotency_keys ADD COLUMN etag text;

-- What is under way had its lease in an index; now it is in a table.
CREATE TABLE hookjetty.leases (
    id        bigint PRIMARY KEY,
    ends_at   timestamptz NOT NULL,
    task_ids  bigint[] STORAGE PLAIN NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
INSERT INTO hookjetty.leases (id, ends_at, task_ids)
SELECT hookjetty.new_id(), max(next_try_at), array_agg(id)
FROM (SELECT id, next_try_at, row_number() OVER (ORDER BY id) / 500 AS claim
      FROM hookjetty.tasks
      WHERE next_try_at IS NOT NULL AND NOT ready AND status = 'delivering') under_way
GROUP BY claim;

DROP INDEX hookjetty.tasks_ready, hookjetty.tasks_later, hookjetty.tasks_waiting,
           hookjetty.tasks_by_status, hookjetty.tasks_by_event;
DO $$
DECLARE
    partition text;
BEGIN
    FOR partition IN SELECT name FROM hookjetty.partitions WHERE parent = 'tasks' LOOP
        EXECUTE format('ALTER TABLE hookjetty.%I SET (fillfactor = 50)', partition);
    END LOOP;
END $$;
ALTER TABLE hookjetty.tasks
    DROP CONSTRAINT tasks_status_check,
    DROP CONSTRAINT tasks_lane_check,
    DROP CONSTRAINT open_tasks_have_a_time,
    DROP CONSTRAINT only_open_tasks_are_ready,
    DROP CONSTRAINT under_way_has_an_attempt,
    DROP CONSTRAINT delivered_has_no_failure,
    DROP CONSTRAINT failed_has_a_failure,
    DROP CONSTRAINT replays_have_their_lane,
    ADD CONSTRAINT tasks_are_legal CHECK (
        lane IN (0, 1) AND (lane = 1 OR replay_id IS NULL)
        AND CASE status
            WHEN 'pending'    THEN next_try_at IS NOT NULL
            WHEN 'delivering' THEN next_try_at IS NOT NULL AND attempt_id IS NOT NULL
            WHEN 'delivered'  THEN next_try_at IS NULL AND NOT ready AND failure IS NULL
            WHEN 'retry'      THEN next_try_at IS NOT NULL
            WHEN 'waiting'    THEN next_try_at IS NULL AND NOT ready
            WHEN 'failed'     THEN next_try_at IS NULL AND NOT ready AND failure IS NOT NULL
            WHEN 'canceled'   THEN next_try_at IS NULL AND NOT ready
            ELSE false END),
    ADD COLUMN due_at timestamptz GENERATED ALWAYS AS (
        CASE WHEN ready AND probe THEN '-infinity'
             WHEN ready OR status IN ('pending', 'retry') THEN next_try_at END) STORED,
    ADD COLUMN rare_status text GENERATED ALWAYS AS (
        CASE WHEN status IN ('failed', 'canceled', 'waiting', 'retry') THEN status END) STORED;

ALTER TABLE hookjetty.replays
    ADD COLUMN event_types text[],
    ADD COLUMN only_those text CHECK (only_those IN ('failed', 'missing'));
