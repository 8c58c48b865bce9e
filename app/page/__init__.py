"""The page: jobs to look at and to post in a browser. Thin routes over the services that the API uses."""
