"""The wire format, shared by API, workers and client."""
