"""What requests and replies look like: one file a route."""
