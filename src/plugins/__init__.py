"""Event sinks and front ends: clients of the public API."""
