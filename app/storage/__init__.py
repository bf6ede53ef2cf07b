"""The wires to Postgres and Redis: rows, streams, the job queue, and who may write a run."""
