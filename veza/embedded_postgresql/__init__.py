"""Our PostgreSQL backend, over an embedded server that is started by the first connection."""
