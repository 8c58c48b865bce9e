"""The wire format: imported by the API, the workers and the client; imports nothing of ours."""
