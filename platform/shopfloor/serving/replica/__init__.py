"""What runs in a replica of Ray Serve: the application, its routes, its versions, its traffic."""
