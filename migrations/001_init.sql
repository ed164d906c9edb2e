-- The authoritative record: tasks, and one row for every attempt that ended.
--
-- Run by `scheduler migrate`, or by hand: psql "$POSTGRES_URL" -v ON_ERROR_STOP=1 -f migrations/001_init.sql
BEGIN;

CREATE TABLE IF NOT EXISTS schema_migrations (
    version    integer PRIMARY KEY,
    name       text NOT NULL,
    checksum   text,                              -- NULL when applied by psql; `scheduler migrate` fills it in
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE tasks (
    id               uuid PRIMARY KEY,            -- UUIDv7: ordered by time, so inserts go to the index's right edge
    tenant           text NOT NULL DEFAULT 'default',
    queue            text NOT NULL DEFAULT 'default',
    type             text NOT NULL,
    priority         text NOT NULL DEFAULT 'default',
    payload          jsonb NOT NULL DEFAULT '{}',
    status           text NOT NULL DEFAULT 'queued',
    attempts         integer NOT NULL DEFAULT 0,  -- claims so far, never reset: the fence
    failures         integer NOT NULL DEFAULT 0,  -- failed and timed out runs since the last redrive
    losses           integer NOT NULL DEFAULT 0,  -- lost runs since the last redrive
    refusals         integer NOT NULL DEFAULT 0,  -- times a worker had no handler for the type, since the last redrive
    redrives         integer NOT NULL DEFAULT 0,
    suspect          boolean NOT NULL DEFAULT false, -- a worker died while it held this task: run it alone
    max_retries      integer NOT NULL DEFAULT 3,
    timeout_ms       integer,
    backoff          jsonb,
    due_at           timestamptz NOT NULL DEFAULT now(),
    worker           text,
    lease_token      text,
    lease_expires_at timestamptz,
    claimed_at       timestamptz,
    created_at       timestamptz NOT NULL DEFAULT now(),
    finished_at      timestamptz,
    dead_at          timestamptz,                 -- set while the task is a dead letter; a purge clears it
    dead_reason      text,
    redriven_at      timestamptz,
    last_error       text,
    trace_context    text,

    CONSTRAINT tasks_priority CHECK (priority IN ('critical', 'high', 'default', 'low')),
    CONSTRAINT tasks_status CHECK (status IN ('queued', 'running', 'retrying', 'succeeded', 'dead', 'cancelled')),
    CONSTRAINT tasks_payload_is_an_object CHECK (jsonb_typeof(payload) = 'object'),
    CONSTRAINT tasks_counts CHECK (
        failures >= 0 AND losses >= 0 AND refusals >= 0 AND redrives >= 0 AND max_retries >= 0
        AND failures + losses + refusals <= attempts
    ),
    CONSTRAINT tasks_timeout CHECK (timeout_ms > 0),
    CONSTRAINT tasks_finished_when_terminal CHECK (
        (finished_at IS NOT NULL) = (status IN ('succeeded', 'dead', 'cancelled'))
    ),
    CONSTRAINT tasks_leased_when_running CHECK (
        (status = 'running') = (worker IS NOT NULL)
        AND (status = 'running') = (lease_token IS NOT NULL)
        AND (status = 'running') = (lease_expires_at IS NOT NULL)
    ),
    CONSTRAINT tasks_claimed_before_it_ran CHECK (
        status NOT IN ('running', 'retrying', 'succeeded') OR (attempts > 0 AND claimed_at IS NOT NULL)
    ),
    CONSTRAINT tasks_dead_for_a_reason CHECK (
        (status = 'dead') = (dead_reason IS NOT NULL)
        AND (dead_at IS NULL OR status = 'dead')
        AND dead_reason IN ('failed', 'timed_out', 'rejected', 'lost', 'unknown_type')
    )
)
-- Room on each page for the next versions of its rows: claim, renewal and retry touch no indexed column, so
-- they stay heap-only updates.
WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);

-- No index and no predicate names `status`: it changes with every step, and would cost each its heap-only update.
CREATE INDEX tasks_open ON tasks (id) WHERE finished_at IS NULL;
CREATE INDEX tasks_dead ON tasks (id) WHERE dead_at IS NOT NULL;

CREATE TABLE task_runs (
    task_id      uuid NOT NULL,
    attempt      integer NOT NULL,
    outcome      text NOT NULL,
    worker       text,
    lease_token  text,
    claimed_at   timestamptz NOT NULL,
    started_at   timestamptz,                     -- NULL where the handler never started, or its worker died
    finished_at  timestamptz NOT NULL,
    error        text,
    late_outcome text,                            -- what a worker reported after it had lost the lease
    late_at      timestamptz,

    PRIMARY KEY (task_id, attempt),
    CONSTRAINT task_runs_outcome CHECK (
        outcome IN ('succeeded', 'failed', 'timed_out', 'lost', 'released', 'cancelled')
    ),
    CONSTRAINT task_runs_attempt CHECK (attempt > 0)
)
-- A UUIDv7 carries its time: one partition a day, and a look-up by task touches one of them.
PARTITION BY RANGE (task_id);

-- Takes what no day claims (ids from a clock that is days off), so that a settle never fails for want of a partition.
CREATE TABLE task_runs_default PARTITION OF task_runs DEFAULT;

-- The smallest UUIDv7 of an instant.
CREATE FUNCTION uuid_at(instant timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE AS $$
    SELECT (lpad(to_hex((extract(epoch FROM instant) * 1000)::bigint), 12, '0') || '70008000000000000000')::uuid
$$;

-- Makes the history partitions from yesterday to `days` ahead, by UTC days; returns how many were missing.
-- Skips a day whose rows went to the default partition already.
CREATE FUNCTION make_run_partitions(days integer) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    day   date;
    made  integer := 0;
    today date := (now() AT TIME ZONE 'UTC')::date;
BEGIN
    FOR i IN -1..days LOOP
        day := today + i;
        IF to_regclass('task_runs_' || to_char(day, 'YYYYMMDD')) IS NULL
            AND NOT EXISTS (
                SELECT FROM task_runs_default
                WHERE task_id >= uuid_at(day::timestamp AT TIME ZONE 'UTC')
                    AND task_id < uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC')
            )
        THEN
            BEGIN
                EXECUTE format(
                    'CREATE TABLE %I PARTITION OF task_runs FOR VALUES FROM (%L) TO (%L)',
                    'task_runs_' || to_char(day, 'YYYYMMDD'),
                    uuid_at(day::timestamp AT TIME ZONE 'UTC'),
                    uuid_at((day + 1)::timestamp AT TIME ZONE 'UTC')
                );
                made := made + 1;
            EXCEPTION WHEN duplicate_table THEN
                NULL;  -- another process was faster
            END;
        END IF;
    END LOOP;
    RETURN made;
END
$$;

SELECT make_run_partitions(7);

INSERT INTO schema_migrations (version, name) VALUES (1, 'init') ON CONFLICT DO NOTHING;

COMMIT;
