"""What happens to a connection, from the front door to the backend and back."""
