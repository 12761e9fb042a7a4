"""What a server must survive, done to a real one: `make chaos` and `make soak` at full length, the suite in short."""
