-- Become or stay the leader of something: a lease, judged by Postgres' clock.
--
-- in   name, holder, ttl_ms
-- out  one row if the holder leads now
INSERT INTO leaders AS l (name, holder, expires_at)
VALUES (:'name', :'holder', now() + :'ttl_ms'::bigint * interval '1 millisecond')
ON CONFLICT (name) DO UPDATE
SET holder = excluded.holder, expires_at = excluded.expires_at
WHERE l.holder = excluded.holder OR l.expires_at <= now()
RETURNING 1
