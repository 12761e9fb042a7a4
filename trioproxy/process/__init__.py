"""What the process is to the system around it: its user and capabilities, systemd, sockets that were handed to it."""
