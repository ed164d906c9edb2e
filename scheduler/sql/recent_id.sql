-- The smallest id that a task made `age_ms` ago can have, by Postgres' clock.
SELECT uuid_at(now() - :'age_ms'::bigint * interval '1 millisecond')::text
