"""The service's HTTP face: one thin module per resource. What a request means is decided in `app.jobs`."""
