"""One module for one measurement: ``measure(run)`` gives its rows."""
