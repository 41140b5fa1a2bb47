"""Durable state: schema, queue, ledger, spool."""
