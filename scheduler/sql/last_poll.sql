-- Seconds since any worker last looked into the queue; NULL if none ever did.
SELECT extract(epoch FROM now() - max(polled_at))::double precision FROM workers
