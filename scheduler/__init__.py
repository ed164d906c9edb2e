"""Scheduler: Redis speed with Postgres truth."""
