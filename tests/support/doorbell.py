"""A doorbell for tests in which nobody waits for jobs."""


class SilentDoorbell:
    """Remembers whom it was asked to ring, and rings nobody."""

    def __init__(self) -> None:
        self.rung: list[str] = []

    def ring(self, job_id: str, device: str | None = None) -> bool:
        self.rung.append(job_id)
        return True
