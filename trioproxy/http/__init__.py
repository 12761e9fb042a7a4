"""HTTP without sockets: what a message is, how it is read and written, what is refused."""
