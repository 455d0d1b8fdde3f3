"""Sample data, the smoke probe, and the whole system on one machine: all through the services that real orders use."""
