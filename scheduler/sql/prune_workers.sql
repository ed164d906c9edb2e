-- Forget workers that have been silent for longer than keep_ms.
DELETE FROM workers WHERE alive_until < now() - :'keep_ms'::bigint * interval '1 millisecond'
