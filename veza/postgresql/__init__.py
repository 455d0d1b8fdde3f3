"""Django's PostgreSQL backend, whose pool's connections are looked at before use without asking PostgreSQL."""
