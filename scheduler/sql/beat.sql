-- A worker says that it lives.
--
-- in   id, host, pid, queues, types, slots, running; polled_ms since its last look into the queue, NULL = never;
--      alive_ms until its silence counts as death
INSERT INTO workers (id, host, pid, queues, types, slots, running, polled_at, alive_until)
VALUES (
    :'id', :'host', :'pid'::integer, :'queues'::text[], :'types'::text[], :'slots'::integer, :'running'::integer,
    now() - :'polled_ms'::bigint * interval '1 millisecond',
    now() + :'alive_ms'::bigint * interval '1 millisecond'
)
ON CONFLICT (id) DO UPDATE
SET running = excluded.running, polled_at = excluded.polled_at, seen_at = now(), alive_until = excluded.alive_until
