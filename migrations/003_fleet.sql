-- Who works, who leads, and which queues there are.
BEGIN;

CREATE TABLE workers (
    id          text PRIMARY KEY,                 -- host:pid:uuid, never used twice
    host        text NOT NULL,
    pid         integer NOT NULL,
    queues      text[] NOT NULL,
    types       text[] NOT NULL,
    slots       integer NOT NULL,
    running     integer NOT NULL DEFAULT 0,
    started_at  timestamptz NOT NULL DEFAULT now(),
    seen_at     timestamptz NOT NULL DEFAULT now(),
    polled_at   timestamptz,                      -- last successful look into the queue
    alive_until timestamptz NOT NULL              -- silent past this, the worker counts as dead
);

CREATE TABLE leaders (
    name       text PRIMARY KEY,
    holder     text NOT NULL,
    expires_at timestamptz NOT NULL               -- leadership is a lease: nobody has to give it back
);

CREATE TABLE queues (
    name         text PRIMARY KEY,
    created_at   timestamptz NOT NULL DEFAULT now(),
    epoch        bigint NOT NULL DEFAULT 0,       -- mirrored in Redis; absent or smaller there = Redis lost its memory
    redis_run_id text                             -- the server that the epoch was written to
);

INSERT INTO queues (name) VALUES ('default');

INSERT INTO schema_migrations (version, name) VALUES (3, 'fleet') ON CONFLICT DO NOTHING;

COMMIT;
