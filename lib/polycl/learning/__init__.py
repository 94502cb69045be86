"""A model that learns from saved labels: training runs, the gate before a new version is served, the versions."""
