"""Documentation; `docs.render` fills in what follows from the code."""
